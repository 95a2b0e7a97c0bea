"""Generates an endless set of labelled images: textured shapes on a gradient, 32x32 RGB.

The class is the shape and the texture. Colours, size, position, rotation, scale and phase of the
texture, and background are independent of it. Every image is a function of a seed and its index.
"""

import numpy as np

SHAPES = ("disc", "square", "triangle", "cross")
TEXTURES = ("plain", "stripes", "checks", "dots")
NUM_CLASSES = len(SHAPES) * len(TEXTURES)  # class = shape * 4 + texture
SIDE = 32
TRAINING = 20_000  # images [0, 20000) of seed 0 are embedded:shapes; later ones are test images

_CHUNK = 256  # images drawn at a time: their planes stay in the cache
_DRAWS = 18  # uniform random numbers used by an image


def load_shapes() -> tuple[np.ndarray, np.ndarray]:
    """The training set: images uint8 `[20000, 32, 32, 3]` and labels int32 `[20000]` in [0, 16)."""
    return draw_shapes(0, TRAINING)


def draw_shapes(start: int, stop: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Generates images `start` to `stop` - 1, N of them, of seed `seed`.

    Returns:
        Images uint8 `[N, 32, 32, 3]` in [0, 255]; labels int32 `[N]`, the index modulo 16.
    """
    labels = (np.arange(start, stop) % NUM_CLASSES).astype(np.int32)
    draws = np.random.Generator(np.random.PCG64(seed).advance(start * _DRAWS))
    images = np.empty((len(labels), SIDE, SIDE, 3), np.uint8)
    for first in range(0, len(labels), _CHUNK):
        part = labels[first : first + _CHUNK]
        images[first : first + _CHUNK] = _draw(part, draws.random((len(part), _DRAWS)))
    return images, labels


def _draw(labels: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Images [N, 32, 32, 3] of classes `labels` [N]; `uniform` [N, 18] decides all else."""
    shape, texture = np.divmod(labels, len(TEXTURES))
    draw = iter(uniform.astype(np.float32).T[:, :, None, None])  # each [N, 1, 1]
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) + 0.5

    radius = 9 + 5 * next(draw)
    margin = radius + 0.5
    across = x - (margin + (SIDE - 2 * margin) * next(draw))
    down = y - (margin + (SIDE - 2 * margin) * next(draw))
    inside = _coverage(_distance(shape, *_turn(across, down, next(draw)), radius))
    first = _texture(
        texture, *_turn(across, down, next(draw)), 5.5 + 2.5 * next(draw), next(draw), next(draw)
    )

    # The texture has a light and a darker colour; the background is darker than both.
    light = _colour(next(draw), 0.9 * next(draw), 0.75 + 0.25 * next(draw))
    dark = _colour(next(draw), 0.9 * next(draw), 0.3 + 0.2 * next(draw))
    near = _colour(next(draw), 0.8 * next(draw), 0.05)
    far = _colour(next(draw), 0.8, 0.3)
    ramp = np.clip(0.5 + _turn(x - SIDE / 2, y - SIDE / 2, next(draw))[0] / SIDE, 0, 1)
    ground = _mix(near, far, ramp)
    image = _mix(ground, _mix(dark, light, first), inside)
    return np.rint(255 * image).astype(np.uint8)


def _turn(x: np.ndarray, y: np.ndarray, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in a frame turned by `turns` of a whole turn."""
    cosine, sine = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)
    return cosine * x + sine * y, cosine * y - sine * x


def _distance(shape: np.ndarray, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Pixels [N, 32, 32] from the edge of each image's shape, negative inside.

    None reaches beyond `radius`; their areas are 1.3 (triangle) to 2.0 (cross) times its square.
    """
    a, b = np.abs(x), np.abs(y)
    triangle = np.maximum(-y, 0.5 * y + np.sqrt(np.float32(0.75)) * a) - 0.5 * radius
    bar = 0.32 * radius
    reach = 0.94 * radius
    cross = np.minimum(np.maximum(a - reach, b - bar), np.maximum(b - reach, a - bar))
    square = np.maximum(a, b) - 0.7 * radius
    return np.choose(
        shape[:, None, None], [np.hypot(x, y) - 0.75 * radius, square, triangle, cross]
    )


def _texture(texture, x, y, period, phase_x, phase_y) -> np.ndarray:
    """Share [N, 32, 32] of the first colour in each pixel of each image's texture."""
    across, along = x / period + phase_x, y / period + phase_y
    slope = period / (2 * np.pi)  # an edge is a pixel wide
    wave, other = np.sin(2 * np.pi * across), np.sin(2 * np.pi * along)
    dots = np.hypot(across - np.rint(across), along - np.rint(along)) * period - 0.32 * period
    edges = [np.full_like(wave, -1), wave * slope, wave * other * slope, dots]
    return _coverage(np.choose(texture[:, None, None], edges))


def _coverage(distance: np.ndarray) -> np.ndarray:
    """Share of a pixel that lies inside an edge at a signed `distance` of its centre."""
    return np.clip(0.5 - distance, 0, 1)


def _colour(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """RGB [N, 1, 1, 3] of HSV, all in [0, 1]."""
    sector = (np.array([5, 3, 1], np.float32) + 6 * hue[..., None]) % 6
    fall = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return np.asarray(value)[..., None] * (1 - np.asarray(saturation)[..., None] * fall)


def _mix(zero: np.ndarray, one: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Colours [N, 32, 32, 3]: `one` where share [N, 32, 32] is 1, `zero` where it is 0."""
    return zero + share[..., None] * (one - zero)
