"""The pictures of a probe, as matplotlib figures that belong to no window and no notebook.

Colours come from viridis, which people with any colour vision can order.
"""

import math
from collections.abc import Mapping, Sequence
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
ANNOTATED = 120  # cells; more would be too small to be read
DPI = 120
CELL_PIXELS = 64  # of a PCA map, enlarged without blur
GAP_PIXELS = 4
PANEL_COLUMNS = 15  # of PCA maps side by side, of as many images as fit


class Grid(NamedTuple):
    """Blocks and times that were probed, and the blocks that the run aligns, None without any."""

    blocks: Sequence[int]
    times: Sequence[float]
    student: int | None = None
    teacher: int | None = None

    def roles(self) -> dict[int, str]:
        """What the aligned blocks are called, by block."""
        roles = {}
        for block, role in ((self.student, "student"), (self.teacher, "teacher")):
            if block in self.blocks:
                roles[block] = " + ".join(filter(None, [roles.get(block), role]))
        return roles


def draw_heatmap(accuracy: np.ndarray, grid: Grid, title: str) -> Figure:
    """Accuracy [times, blocks] in [0, 1], a coloured cell for each."""
    times, blocks = accuracy.shape
    figure = Figure(
        figsize=(max(4.8, 1.9 + 0.5 * blocks), max(2.6, 1.5 + 0.5 * times)),
        dpi=DPI,
        layout="constrained",
    )
    axes = figure.add_subplot()
    image = axes.imshow(100 * accuracy, cmap=MAP, aspect="auto")
    if accuracy.size <= ANNOTATED:
        _annotate(axes, accuracy)
    _label_blocks(axes, grid)
    axes.set_yticks(range(times), [f"{time:g}" for time in grid.times])
    axes.set_ylabel("time (1 is noise)")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for block, role in grid.roles().items():
        column = list(grid.blocks).index(block)
        frame = Rectangle((column - 0.5, -0.5), 1, times, fill=False, edgecolor="white", lw=5)
        axes.add_patch(frame)
        frame = Rectangle((column - 0.5, -0.5), 1, times, fill=False, edgecolor="black", lw=2)
        axes.add_patch(frame).set_clip_on(False)
        axes.annotate(role, (column, -0.58), ha="center", va="bottom", annotation_clip=False)
    figure.colorbar(image, label="top-1 accuracy, %", pad=0.03)
    axes.set_title(title, pad=22, fontsize=10)
    return figure


def draw_depth(accuracy: np.ndarray, grid: Grid, majority: float, title: str) -> Figure:
    """Accuracy [times, blocks] in [0, 1] against depth, a line for each time, and one at the share
    `majority` of the most frequent class, which is what always naming it gives."""
    figure = Figure(
        figsize=(max(5.4, 2.8 + 0.25 * len(grid.blocks)), 3.8), dpi=DPI, layout="constrained"
    )
    axes = figure.add_subplot()
    for row, time in enumerate(grid.times):
        axes.plot(
            grid.blocks, 100 * accuracy[row], label=f"t = {time:g}", **_style(row, grid.times)
        )
    _draw_majority(axes, majority)
    for block, role in grid.roles().items():
        axes.axvline(block, color="0.35", lw=1, ls="--", zorder=0)
        axes.annotate(
            role,
            (block, 1.01),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
        )
    step = max(1, len(grid.blocks) // 14)
    axes.set_xticks(grid.blocks[::step])
    axes.set_xlabel("block")
    _finish(axes, title, accuracy.max())
    return figure


def draw_checkpoints(
    accuracy: np.ndarray, steps: Sequence[int], grid: Grid, majority: float, title: str
) -> Figure:
    """Accuracy [steps, times, blocks] in [0, 1] of the aligned blocks as a run goes on.

    Of the best block at the end where none are aligned.
    """
    best = grid.blocks[int(accuracy[-1].mean(axis=0).argmax())]
    roles = grid.roles() or {best: "best"}
    figure = _figure(1.2 + 3.6 * len(roles), 3.8)
    panels = figure.subplots(1, len(roles), sharey=True, squeeze=False)[0]
    for axes, (block, role) in zip(panels, sorted(roles.items()), strict=True):
        column = list(grid.blocks).index(block)
        for row, time in enumerate(grid.times):
            values = 100 * accuracy[:, row, column]
            axes.plot(steps, values, label=f"t = {time:g}", **_style(row, grid.times))
        _draw_majority(axes, majority)
        axes.set_xlabel("training step")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        _finish(axes, f"block {block}, {role}", accuracy.max(), pad=6)
        if axes is not panels[0]:
            axes.set_ylabel("")
        if axes is not panels[-1]:
            axes.get_legend().remove()
    figure.suptitle(title, fontsize=10)
    return figure


def draw_pca(
    maps: np.ndarray, inputs: np.ndarray, names: Sequence[str], grid: Grid, title: str
) -> Figure:
    """PCA maps [times, blocks, images, g, g, 3] in [0, 1], beside what the model saw.

    A panel for each of the images, `names` above them; `inputs` are [times, images, H, W, C].
    """
    times, blocks, images = maps.shape[:3]
    abreast = min(images, max(1, PANEL_COLUMNS // (blocks + 1)))
    stacked = math.ceil(images / abreast)
    width, height = abreast * (0.5 * (blocks + 1) + 0.6), stacked * (0.5 * times + 0.6) + 0.4
    figure = _figure(max(width, 4.2), height)
    panels = figure.subplots(stacked, abreast, squeeze=False).flat
    roles, pitch = grid.roles(), CELL_PIXELS + GAP_PIXELS
    columns = ["input", *(f"{block}\n{roles.get(block, '')}" for block in grid.blocks)]
    for number, axes in enumerate(panels):
        if number >= images:
            axes.axis("off")
            continue
        rows = [[inputs[t, number], *maps[t, :, number]] for t in range(times)]
        axes.imshow(_mosaic(rows), interpolation="nearest")
        axes.set_xticks(np.arange(blocks + 1) * pitch + CELL_PIXELS / 2, columns)
        axes.set_yticks(
            np.arange(times) * pitch + CELL_PIXELS / 2, [f"t = {time:g}" for time in grid.times]
        )
        axes.tick_params(length=0, labelsize=7.5)
        axes.spines[:].set_visible(False)
        axes.set_title(names[number], fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG, whole or not at all."""
    with atomic_write(path) as scratch:
        figure.savefig(scratch, format="png", bbox_inches="tight", metadata={"Software": None})


def _figure(width: float, height: float) -> Figure:
    """An empty one, in inches, whose parts will not overlap."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _annotate(axes: Axes, accuracy: np.ndarray) -> None:
    low, high = accuracy.min(), accuracy.max()
    for (row, column), value in np.ndenumerate(accuracy):
        bright = (value - low) / (high - low) > 0.6 if high > low else False
        axes.text(
            column,
            row,
            f"{100 * value:.0f}" if accuracy.shape[1] > 14 else f"{100 * value:.1f}",
            ha="center",
            va="center",
            fontsize=7.5 if accuracy.shape[1] > 14 else 9,
            color="black" if bright else "white",
        )


def _label_blocks(axes: Axes, grid: Grid) -> None:
    axes.set_xticks(range(len(grid.blocks)), [str(block) for block in grid.blocks])
    axes.set_xlabel("block")


def _style(row: int, times: Sequence[float]) -> Mapping[str, object]:
    """Of the line of one time: the noisier the brighter, and told apart by its marker too."""
    colour = MAP(0.85 * row / max(len(times) - 1, 1))
    return {"color": colour, "marker": MARKERS[row % len(MARKERS)], "lw": 2, "ms": 5}


def _draw_majority(axes: Axes, majority: float) -> None:
    axes.axhline(100 * majority, color="0.5", lw=1, ls=":", label="majority class", zorder=0)


def _finish(axes: Axes, title: str, top: float, pad: float = 20) -> None:
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_ylim(0, 105 * max(top, 0.1))
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, pad=pad, fontsize=10)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _mosaic(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Pictures of any sizes as one, each enlarged to a cell, on white: [height, width, 3]."""
    pitch = CELL_PIXELS + GAP_PIXELS
    shape = (len(rows) * pitch - GAP_PIXELS, len(rows[0]) * pitch - GAP_PIXELS, 3)
    whole = np.ones(shape, np.float32)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * pitch, j * pitch
            whole[top : top + CELL_PIXELS, left : left + CELL_PIXELS] = _cell(picture)
    return whole


def _cell(picture: np.ndarray) -> np.ndarray:
    """[h, w, C] as colours of a cell's size: grey if C is 1, else the first three channels."""
    height, width, channels = picture.shape
    rows, columns = (np.arange(CELL_PIXELS) * side // CELL_PIXELS for side in (height, width))
    colours = picture[..., :3] if channels >= 3 else picture[..., :1].repeat(3, axis=-1)
    return colours[rows][:, columns]
