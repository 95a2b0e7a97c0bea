"""PCA maps: the leading principal components of patch features as colours."""

import numpy as np

COMPONENTS = 3


def principal_scores(features: np.ndarray) -> np.ndarray:
    """Projects rows [N, D] on their three leading principal components: [N, 3], float64.

    The sign of a component makes its largest loading positive. If the rows have fewer than three
    components (they are on a line or in a plane), the scores of the others are 0.
    """
    centred = np.asarray(features, np.float64)
    centred = centred - centred.mean(axis=0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    largest = np.argmax(np.abs(directions), axis=1)
    signs = np.sign(directions[np.arange(len(directions)), largest])
    noise = values.max(initial=0) * max(centred.shape) * np.finfo(np.float32).eps
    kept = (signs * (values > noise))[:COMPONENTS, None] * directions[:COMPONENTS]
    scores = centred @ kept.T
    return np.pad(scores, ((0, 0), (0, COMPONENTS - scores.shape[1])))


def pca_maps(features: np.ndarray) -> np.ndarray:
    """Turns patch features [images, N, D] into colours [images, grid, grid, 3]; N = grid * grid.

    The components are fitted to the patches of all images together. The first is red, the second
    green, the third blue. Each is scaled to fill [0, 1]; a missing component is 0.5.
    """
    count, patches, width = features.shape
    scores = principal_scores(features.reshape(-1, width))
    low, high = scores.min(axis=0), scores.max(axis=0)
    colours = np.where(high > low, (scores - low) / np.where(high > low, high - low, 1), 0.5)
    grid = round(patches**0.5)
    return colours.reshape(count, grid, grid, COMPONENTS)
