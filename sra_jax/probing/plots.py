"""The figures of a probe, drawn by matplotlib without a window or a notebook.

Colours are from viridis, which people with any colour vision can order.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sra_jax.core.files import atomic_write

MAP = colormaps["viridis"]
MARKERS = "osD^vPX*"
ANNOTATED = 120  # cells; the numbers of more would be too small to read
DPI = 120
PICTURE = 0.94  # side of a PCA map, when its cell is 1 wide
PANEL_COLUMNS = 15  # PCA maps in a row of panels
LEGEND = {"frameon": False, "fontsize": 9, "loc": "center left", "bbox_to_anchor": (1.0, 0.5)}


class Grid(NamedTuple):
    """Blocks and times that were probed, and the two aligned blocks, None without any."""

    blocks: Sequence[int]
    times: Sequence[float]
    student: int | None = None
    teacher: int | None = None

    def roles(self) -> dict[int, str]:
        """Returns the names of the aligned blocks, by block."""
        roles = {}
        for block, role in ((self.student, "student"), (self.teacher, "teacher")):
            if block in self.blocks:
                roles[block] = " + ".join(filter(None, [roles.get(block), role]))
        return roles


def draw_heatmap(accuracy: np.ndarray, grid: Grid, title: str) -> Figure:
    """Draws accuracy [times, blocks] in [0, 1] as coloured cells, and frames the aligned blocks."""
    times, blocks = accuracy.shape
    figure = _figure(max(4.8, 1.9 + 0.5 * blocks), max(2.6, 1.5 + 0.5 * times))
    axes = figure.add_subplot()
    image = axes.imshow(100 * accuracy, cmap=MAP, aspect="auto")
    if accuracy.size <= ANNOTATED:
        digits, size = (0, 7.5) if blocks > 14 else (1, 9)
        for (row, column), value in np.ndenumerate(accuracy):
            color = "black" if image.norm(100 * value) > 0.6 else "white"
            text = f"{100 * value:.{digits}f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=size, color=color)
    axes.set_xticks(range(blocks), [str(block) for block in grid.blocks])
    axes.set_yticks(range(times), [f"{time:g}" for time in grid.times])
    axes.set(xlabel="block", ylabel="time (1 is noise)")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for block, role in grid.roles().items():
        column = list(grid.blocks).index(block)
        for color, width, clip in (("white", 5, True), ("black", 2, False)):  # with white edges
            box = (column - 0.5, -0.5), 1, times
            axes.add_patch(Rectangle(*box, fill=False, ec=color, lw=width)).set_clip_on(clip)
        axes.annotate(role, (column, -0.58), ha="center", va="bottom", annotation_clip=False)
    figure.colorbar(image, label="top-1 accuracy, %", pad=0.03)
    axes.set_title(title, pad=22, fontsize=10)
    return figure


def draw_depth(accuracy: np.ndarray, grid: Grid, majority: float, title: str) -> Figure:
    """Draws accuracy [times, blocks] in [0, 1] by depth, a curve for each time.

    `majority` is the share of the most frequent class: the accuracy of a constant answer.
    """
    figure = _figure(max(5.4, 2.8 + 0.25 * len(grid.blocks)), 3.8)
    axes = figure.add_subplot()
    _draw_curves(axes, grid.blocks, accuracy, grid, majority)
    for block, role in grid.roles().items():
        axes.axvline(block, color="0.35", lw=1, ls="--", zorder=0)
        place = axes.get_xaxis_transform()  # a height of 1 is the top of the axes
        axes.text(block, 1.01, role, transform=place, ha="center", va="bottom")
    axes.set_xticks(grid.blocks[:: max(1, len(grid.blocks) // 14)])
    axes.set(xlabel="block", ylabel="top-1 accuracy, %", ylim=_scale(accuracy))
    axes.set_title(title, pad=20, fontsize=10)
    axes.legend(**LEGEND)
    return figure


def draw_checkpoints(
    accuracy: np.ndarray, steps: Sequence[int], grid: Grid, majority: float, title: str
) -> Figure:
    """Draws accuracy [steps, times, blocks] in [0, 1] of the aligned blocks by training step.

    If no block is aligned, it draws the block that is best at the last step.
    """
    best = grid.blocks[int(accuracy[-1].mean(axis=0).argmax())]
    roles = grid.roles() or {best: "best"}
    figure = _figure(1.2 + 3.6 * len(roles), 3.8)
    panels = figure.subplots(1, len(roles), sharey=True, squeeze=False)[0]
    for axes, (block, role) in zip(panels, sorted(roles.items()), strict=True):
        curves = accuracy[:, :, list(grid.blocks).index(block)].T
        _draw_curves(axes, steps, curves, grid, majority)
        axes.set_xlabel("training step")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_title(f"block {block}, {role}", fontsize=10)
    panels[0].set(ylabel="top-1 accuracy, %", ylim=_scale(accuracy))  # of all panels
    panels[-1].legend(**LEGEND)
    figure.suptitle(title, fontsize=10)
    return figure


def draw_pca(
    maps: np.ndarray, inputs: np.ndarray, names: Sequence[str], grid: Grid, title: str
) -> Figure:
    """Draws PCA maps [times, blocks, images, g, g, 3] in [0, 1], a panel for each named image.

    The model's inputs [times, images, H, W, C] in [0, 1] are beside them: grey, or the first three
    channels as colours.
    """
    times, blocks, images = maps.shape[:3]
    columns = min(images, max(1, PANEL_COLUMNS // (blocks + 1)))
    rows = math.ceil(images / columns)
    width, height = columns * (0.5 * (blocks + 1) + 0.6), rows * (0.5 * times + 0.6) + 0.4
    figure = _figure(max(width, 4.2), height)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    roles, middle = grid.roles(), PICTURE / 2
    labels = ["input", *(f"{block}\n{roles.get(block, '')}" for block in grid.blocks)]
    for axes in panels[images:]:
        axes.axis("off")
    for number, name in enumerate(names):
        axes = panels[number]
        axes.set(xlim=(0, blocks + PICTURE), ylim=(times - 1 + PICTURE, 0))  # down, as in a table
        for row in range(times):
            for column, picture in enumerate([inputs[row, number], *maps[row, :, number]]):
                picture = picture[..., :3] if picture.shape[-1] >= 3 else picture[..., 0]
                extent = (column, column + PICTURE, row + PICTURE, row)
                axes.imshow(picture, "gray", vmin=0, vmax=1, interpolation="nearest", extent=extent)
        axes.set_xticks(np.arange(blocks + 1) + middle, labels)
        axes.set_yticks(np.arange(times) + middle, [f"t = {time:g}" for time in grid.times])
        axes.tick_params(length=0, labelsize=7.5)
        axes.spines[:].set_visible(False)
        axes.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG with an atomic write."""
    with atomic_write(path) as scratch:
        figure.savefig(scratch, format="png", bbox_inches="tight", metadata={"Software": None})


def _figure(width: float, height: float) -> Figure:
    """Returns an empty figure, in inches, whose parts do not overlap."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _scale(accuracy: np.ndarray) -> tuple[float, float]:
    """Returns the limits of an axis of accuracy, in %."""
    return 0, 105 * max(accuracy.max(), 0.1)


def _draw_curves(
    axes: Axes, x: Sequence[int], accuracy: np.ndarray, grid: Grid, majority: float
) -> None:
    """Draws accuracy [times, len(x)] in [0, 1], a curve for each time."""
    for row, time in enumerate(grid.times):  # more noise is brighter
        colour, marker = MAP(0.85 * row / max(len(grid.times) - 1, 1)), MARKERS[row % len(MARKERS)]
        label = f"t = {time:g}"
        axes.plot(x, 100 * accuracy[row], label=label, color=colour, marker=marker, lw=2, ms=5)
    axes.axhline(100 * majority, color="0.5", lw=1, ls=":", label="majority class", zorder=0)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
