"""PCA maps: what a block tells apart in an image, as colours."""

import numpy as np

COMPONENTS = 3


def principal_scores(features: np.ndarray) -> np.ndarray:
    """The leading three principal components of rows [N, D] -> [N, 3], float64.

    Each direction's sign is such that its largest loading is positive. Directions that are not
    there, of rows that all lie in a plane or on a line, score 0.
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
    """Patch features [images, N, D] of one block and time -> colours [images, grid, grid, 3].

    The components are fitted to the patches of all these images together, and each fills the range
    [0, 1] (a component that is not there: 0.5), red the first, green the second, blue the third.
    """
    count, patches, width = features.shape
    scores = principal_scores(features.reshape(-1, width))
    low, high = scores.min(axis=0), scores.max(axis=0)
    colours = np.where(high > low, (scores - low) / np.where(high > low, high - low, 1), 0.5)
    grid = round(patches**0.5)
    return colours.reshape(count, grid, grid, COMPONENTS)
