"""What a run says of itself is true, complete, and costs the devices no time."""

import logging
import math
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sra_jax.core.progress import format_seconds
from sra_jax.training import reporter as reporting
from sra_jax.training.reporter import NonFiniteError, Reporter, StepCost
from sra_jax.training.tensorboard import make_writer

BATCH, DEVICES, FLOPS = 8, 4, 5e9


def reporter(writer, first=0, last=100, every=3, peak=None) -> Reporter:
    return Reporter(writer, first, last, every, StepCost(BATCH, FLOPS, DEVICES, peak))


def metrics(loss, **others) -> dict[str, jax.Array]:
    return {name: jnp.float32(value) for name, value in {"loss": loss, **others}.items()}


def read_back(logdir) -> dict[str, dict[int, float]]:
    """{tag: {step: value}} of the event files in `logdir`, as TensorBoard reads them."""
    accumulator = EventAccumulator(str(logdir), size_guidance={"tensors": 0}).Reload()
    return {
        tag: {e.step: float(e.tensor_proto.float_val[0]) for e in accumulator.Tensors(tag)}
        for tag in accumulator.Tags()["tensors"]
    }


def test_tensorboard_shows_means_over_each_interval(tmp_path):
    report = reporter(make_writer(str(tmp_path)), first=10, every=3, peak=1e12)
    losses = np.random.default_rng(0).normal(size=8).astype(np.float32)
    for i, loss in enumerate(losses):
        report.add(11 + i, metrics(loss, grad_norm=i), waited=0.0)
    report.flush()
    report.close()

    events = read_back(tmp_path)
    # Steps 11, 12 | 13, 14, 15 | 16, 17, 18: an interval ends where the step is a multiple of 3.
    intervals = {12: losses[:2], 15: losses[2:5], 18: losses[5:]}
    assert events["loss"].keys() == intervals.keys()
    for step, values in intervals.items():
        assert events["loss"][step] == pytest.approx(values.mean(), rel=1e-5)
    assert events["grad_norm"] == {12: 0.5, 15: 3.0, 18: 6.0}
    for step in intervals:
        seconds = events["step_seconds"][step]
        assert seconds > 0
        images = BATCH / seconds
        assert events["images_per_second"][step] == pytest.approx(images, rel=1e-5)
        each = events["images_per_second_per_device"][step]
        assert each == pytest.approx(images / DEVICES, rel=1e-5)
        assert events["tflops_per_second"][step] == pytest.approx(images * FLOPS / 1e12, rel=1e-5)
        expected = images * FLOPS / (DEVICES * 1e12)
        assert events["mfu"][step] == pytest.approx(expected, rel=1e-5)


def test_the_share_of_waiting_is_of_the_time_that_passed(tmp_path):
    report = reporter(make_writer(str(tmp_path)), every=2)
    for step in (1, 2, 3, 4):
        report.add(step, metrics(1.0), waited=0.25 if step < 3 else 0.0)
    report.flush()
    report.close()
    events = read_back(tmp_path)
    total = 2 * events["step_seconds"][2]
    assert events["input_wait_share"][2] == pytest.approx(0.5 / total, rel=1e-4)
    assert events["input_wait_share"][4] == 0.0


def test_the_log_line_holds_what_a_reader_wants(tmp_path, caplog):
    report = reporter(make_writer(str(tmp_path)), last=2000, every=1000)
    with caplog.at_level(logging.INFO, logger=reporting.__name__):
        report.add(1000, metrics(0.25, generation=0.2, alignment=0.5, grad_norm=1.5), waited=0.0)
        assert caplog.messages == []  # not before the devices have their next step
        report.add(1001, metrics(0.5), waited=0.0)
    report.close()
    (line,) = caplog.messages
    for part in ("step 1,000/2,000", "loss 0.25 ", "generation 0.2 ", "alignment 0.5 "):
        assert part in line
    for part in ("grad_norm 1.5 ", " ms/step ", " images/s ", " TFLOP/s ", "input wait 0.0%"):
        assert part in line
    assert line.endswith(" left") and "MFU" not in line  # of an unknown chip
    assert "\n" not in line


def test_without_a_writer_it_checks_and_says_nothing(caplog):
    with caplog.at_level(logging.INFO, logger=reporting.__name__):
        report = reporter(None)
        report.add(1, metrics(1.0), waited=0.0)
        report.flush()
        report.add(2, metrics(math.nan), waited=0.0)
        with pytest.raises(NonFiniteError):
            report.flush()
        report.close()
    assert caplog.messages == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_the_first_step_that_is_not_finite_is_named(tmp_path, name, value):
    report = reporter(make_writer(str(tmp_path)), every=100)
    for step in range(1, 8):
        bad = {name: value} if step in (5, 6) else {}
        report.add(step, metrics(1.0, grad_norm=2.0) | metrics(**({"loss": 1.0} | bad)), 0.0)
    with pytest.raises(NonFiniteError, match=f"{name} is {value} at step 5"):
        report.flush()
    report.close()
    assert "loss" not in read_back(tmp_path)


def test_a_bad_step_is_told_at_the_next_report_without_a_flush():
    report = reporter(None, every=2)
    report.add(1, metrics(math.nan), waited=0.0)
    report.add(2, metrics(1.0), waited=0.0)
    with pytest.raises(NonFiniteError, match="at step 1"):
        report.add(3, metrics(1.0), waited=0.0)


def test_skipped_steps_are_told_counted_and_left_out_of_the_means(tmp_path, caplog):
    report = reporter(make_writer(str(tmp_path)), every=4)
    for step, loss in enumerate([1.0, math.nan, 3.0, 5.0, 7.0], start=1):
        report.add(step, metrics(loss, skipped=math.isnan(loss)), waited=0.0)
    with caplog.at_level(logging.INFO, logger=reporting.__name__):
        report.flush()
    report.close()
    assert caplog.messages[0] == "skipped step 2 (1 in all): loss is nan at step 2"
    events = read_back(tmp_path)
    assert events["loss"] == {4: 3.0, 5: 7.0} and events["skipped_steps"] == {4: 1.0, 5: 1.0}


def test_a_run_that_skips_every_step_ends():
    report, last = reporter(None, every=7), reporting.MAX_SKIPPED_IN_A_ROW
    for step in range(1, last + 1):  # the first row of skipped steps is one too short
        report.add(step, metrics(1.0 if step == 1 else math.nan, skipped=step > 1), waited=0.0)
    report.flush()
    report.add(last + 1, metrics(math.nan, skipped=1), waited=0.0)
    with pytest.raises(NonFiniteError, match=f"at step {last + 1}, the last of {last} skipped"):
        report.flush()


def test_nothing_is_reported_twice(tmp_path):
    report = reporter(make_writer(str(tmp_path)), every=2)
    for step in (1, 2):
        report.add(step, metrics(step), waited=0.0)
    report.flush()  # as the loop does before it saves
    report.flush()
    report.add(3, metrics(3.0), waited=0.0)
    report.flush()
    report.close()
    assert read_back(tmp_path)["loss"] == {2: 1.5, 3: 3.0}


def test_add_waits_for_no_step_but_the_third_last():
    """Each step's work takes the devices a while; the host must run at most two steps ahead."""
    assert reporting.MAX_STEPS_AHEAD == 2

    @jax.jit
    def work(x):
        x = jax.lax.fori_loop(0, 60, lambda _, x: jnp.tanh(x @ x), x)
        return x, x.sum()

    x = jnp.eye(800)
    jax.block_until_ready(work(x))
    report, losses = reporter(None, every=100), []
    for step in (1, 2, 3, 4):
        x, loss = work(x)
        losses.append(loss)
        report.add(step, {"loss": loss}, waited=0.0)
        assert not loss.is_ready()  # its own step is still under way
        assert all(earlier.is_ready() for earlier in losses[:-2])
        if step == 2:
            assert not losses[0].is_ready()  # and nothing was waited for until now
    report.flush()
    assert all(loss.is_ready() for loss in losses)


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0s"),
        (0.4, "0s"),
        (45, "45s"),
        (59.6, "1m00s"),
        (185, "3m05s"),
        (3599.7, "1h00m"),
        (2 * 3600 + 7 * 60 + 59, "2h07m"),
        (3 * 86400 + 4 * 3600, "3d04h"),
    ],
)
def test_durations_read_as_people_write_them(seconds, text):
    assert format_seconds(seconds) == text


def test_closing_leaves_no_thread(tmp_path):
    before = threading.active_count()
    report = reporter(make_writer(str(tmp_path)))
    report.add(1, metrics(1.0), waited=0.0)
    report.flush()
    report.close()
    assert threading.active_count() <= before
    assert read_back(tmp_path)["loss"] == {1: 1.0}


def test_events_that_cannot_be_written_are_told_once_and_end_nothing(tmp_path, caplog, capfd):
    report = reporter(make_writer(str(tmp_path / "events")), every=1)
    report.add(1, metrics(1.0), waited=0.0)
    (tmp_path / "events").rename(tmp_path / "away")
    for step in (2, 3, 4):
        report.add(step, metrics(1.0), waited=0.0)
    report.flush()
    report.close()
    (warning,) = [record.message for record in caplog.records if record.levelname != "INFO"]
    assert "No such file or directory); training goes on without TensorBoard" in warning
    assert capfd.readouterr().err == ""
