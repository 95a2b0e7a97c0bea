"""The figures of a probe: their texts, and where the colours are."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sra_jax.probing import plots
from sra_jax.probing.plots import Grid

GRID = Grid(blocks=(1, 2, 3, 4), times=(0.1, 0.5), student=1, teacher=3)
ACCURACY = np.array([[0.5, 0.6, 0.7, 0.65], [0.1, 0.2, 0.3, 0.25]])


def texts(figure):
    """All that is written in a figure."""
    figure.draw_without_rendering()
    return {text.get_text() for text in figure.findobj(match=lambda a: hasattr(a, "get_text"))}


def test_the_heat_map_names_every_cell_and_the_aligned_blocks():
    figure = plots.draw_heatmap(ACCURACY, GRID, "a run")
    written = texts(figure)
    assert written >= {"a run", "student", "teacher", "block", "0.1", "0.5", "70.0", "25.0"}
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), 100 * ACCURACY)


def test_the_heat_map_of_a_large_model_stays_readable(tmp_path):
    blocks, times = tuple(range(1, 29)), (0.1, 0.3, 0.5, 0.7, 0.9)
    accuracy = np.random.default_rng(0).uniform(size=(5, 28))
    figure = plots.draw_heatmap(accuracy, Grid(blocks, times, 8, 20), "XL")
    assert f"{100 * accuracy[0, 0]:.0f}" not in texts(figure) and {"8", "20"} <= texts(figure)
    plots.save(figure, tmp_path / "map.png")
    assert Image.open(tmp_path / "map.png").width > 1500


def test_an_aligned_block_that_was_not_probed_is_not_marked():
    only = Grid(blocks=(2, 3), times=(0.1, 0.5), student=1, teacher=3)
    written = texts(plots.draw_heatmap(ACCURACY[:, 1:3], only, "a run"))
    assert "teacher" in written and "student" not in written
    both = Grid(blocks=(2, 3), times=(0.1, 0.5), student=3, teacher=3)
    assert both.roles() == {3: "student + teacher"}
    plain = Grid(blocks=(2, 3), times=(0.1, 0.5))
    assert plain.roles() == {}


def test_depth_curves_show_each_time_and_the_majority_class():
    figure = plots.draw_depth(ACCURACY, GRID, 0.1, "a run")
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].get_lines()}
    np.testing.assert_allclose(lines["t = 0.1"], 100 * ACCURACY[0])
    np.testing.assert_allclose(lines["t = 0.5"], 100 * ACCURACY[1])
    np.testing.assert_allclose(lines["majority class"], 10)
    assert figure.axes[0].get_ylim()[1] > 70


@pytest.mark.parametrize(
    ("grid", "columns"), [(GRID, [0, 2]), (Grid(GRID.blocks, GRID.times), [3])]
)
def test_checkpoints_follow_the_aligned_blocks_or_the_best(grid, columns):
    accuracy = np.stack([ACCURACY / 2, ACCURACY + np.array([0, 0, 0, 0.2])])
    figure = plots.draw_checkpoints(accuracy, [100, 200], grid, 0.1, "a run")
    assert len(figure.axes) == len(columns)
    for axes, column in zip(figure.axes, columns, strict=True):
        (line,) = [line for line in axes.get_lines() if line.get_label() == "t = 0.5"]
        np.testing.assert_allclose(line.get_xdata(), [100, 200])
        np.testing.assert_allclose(line.get_ydata(), 100 * accuracy[:, 1, column])
        assert axes.get_ylim()[1] > 100 * accuracy.max()


@pytest.mark.parametrize("images", [1, 2, 4])
def test_pca_maps_lie_in_their_cells(tmp_path, images):
    """Every cell of one colour of its own."""
    rng = np.random.default_rng(0)
    colours, greys = rng.uniform(size=(2, 4, images, 1, 1, 3)), rng.uniform(size=(2, images))
    maps = np.broadcast_to(colours, (2, 4, images, 3, 3, 3))
    inputs = np.broadcast_to(greys[..., None, None, None], (2, images, 8, 8, 1))
    names = [f"image {i}" for i in range(images)]
    figure = plots.draw_pca(maps, inputs, names, GRID, "a run")
    assert {"input", "1\nstudent", "3\nteacher", *names} <= texts(figure)
    figure.savefig(tmp_path / "pca.png")  # uncropped, so that its pixels are the figure's
    pixels = np.asarray(Image.open(tmp_path / "pca.png").convert("RGB")) / 255

    def colour(axes, column, row):
        x, y = axes.transData.transform((column, row))
        return pixels[len(pixels) - 1 - int(y), int(x)]

    for i in range(images):
        axes = figure.axes[i]
        for time in range(2):
            middles = [colour(axes, column + 0.45, time + 0.45) for column in range(5)]
            np.testing.assert_allclose(middles[0], greys[time, i], atol=0.01)
            np.testing.assert_allclose(middles[1:], colours[time, :, i, 0, 0], atol=0.01)
        np.testing.assert_array_equal(colour(axes, 0.97, 0.45), 1)  # a gap, white
    plots.save(figure, tmp_path / "pca.png")
    assert Image.open(tmp_path / "pca.png").format == "PNG"


def test_a_failed_save_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "map.png"
    path.write_text("old")
    figure = plots.draw_heatmap(ACCURACY, GRID, "a run")
    monkeypatch.setattr(figure, "savefig", None)
    with pytest.raises(TypeError):
        plots.save(figure, path)
    assert path.read_text() == "old"


def test_pictures_need_no_display_and_only_they_need_matplotlib():
    code = (
        "import sys, sra_jax.jobs.probe; assert 'matplotlib' not in sys.modules\n"
        "import sra_jax.probing.plots; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
