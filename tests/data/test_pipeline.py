import itertools
import threading
import time

import jax
import numpy as np
import pytest
from tiny import pixel_spec

from sra_jax.core.errors import InputError
from sra_jax.data.pipeline import batches, prefetch
from sra_jax.data.records import open_records, write_latents

RECORDS = 50
BATCH = 12


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Fifty records; every number in record i is i."""
    directory = tmp_path_factory.mktemp("data") / "numbered"
    spec = pixel_spec(2, num_classes=RECORDS)
    labels = np.arange(RECORDS)
    moments = np.broadcast_to(labels[:, None, None, None], (RECORDS, 2, 2, 2)).astype(np.float32)
    write_latents(directory, spec, [[(moments[:20], labels[:20])], [(moments[20:], labels[20:])]])
    return open_records(directory)


def labels_of(source, steps, **options):
    """The labels of `steps` batches, `[steps, rows]`."""
    options = {"batch_size": BATCH, "seed": 0, "start_step": 0} | options
    taken = list(itertools.islice(batches(source, **options), steps))
    for batch in taken:
        expected = np.broadcast_to(batch["labels"][:, None, None, None], batch["moments"].shape)
        np.testing.assert_array_equal(batch["moments"], expected)
    return np.stack([batch["labels"] for batch in taken])


def test_every_epoch_visits_each_record_once_in_its_own_order(source):
    stream = labels_of(source, 3 * RECORDS // BATCH + 1).ravel()
    epochs = stream[: 3 * RECORDS].reshape(3, RECORDS)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(RECORDS), (3, 1)))
    assert not (epochs[0] == epochs[1]).all() and not (epochs[1] == epochs[2]).all()


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_hosts_read_disjoint_rows_of_the_same_global_batch(source, hosts):
    whole = labels_of(source, 10)
    for host in range(hosts):
        contiguous = np.array_split(np.arange(BATCH), hosts)[host]
        for rows in (contiguous, np.arange(BATCH)[host::hosts]):
            np.testing.assert_array_equal(labels_of(source, 10, rows=rows), whole[:, rows])


@pytest.mark.parametrize("step", [1, 4, 9])
def test_the_step_alone_restores_the_position(source, step):
    whole = labels_of(source, 12)
    np.testing.assert_array_equal(labels_of(source, 12 - step, start_step=step), whole[step:])


def test_a_far_step_is_reached_at_once(source):
    start = time.monotonic()
    labels_of(source, 1, start_step=10**9)
    assert time.monotonic() - start < 1


def test_seeds_give_orders_that_never_meet(source):
    streams = [labels_of(source, 25, seed=seed).ravel().reshape(6, RECORDS) for seed in range(4)]
    assert len(np.unique(np.concatenate(streams), axis=0)) == 24
    np.testing.assert_array_equal(streams[3], labels_of(source, 25, seed=3).reshape(6, RECORDS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": RECORDS + 1}, "batch size 51 with 50 records"),
        ({"batch_size": 0}, "batch size 0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_bad_input_is_named_at_the_call(source, options, message):
    with pytest.raises(InputError, match=message):
        batches(source, **({"batch_size": BATCH, "seed": 0, "start_step": 0} | options))


def test_the_reader_s_error_reaches_the_consumer():
    class Broken:
        def __len__(self):
            return RECORDS

        def read(self, indices):
            raise InputError("the disk is on fire")

    with pytest.raises(InputError, match="the disk is on fire"):
        next(prefetch(batches(Broken(), BATCH, 0, 0), jax.device_put))


def test_prefetch_changes_nothing_but_the_place(source):
    placed = prefetch(batches(source, BATCH, 0, 0), jax.device_put)
    taken = list(itertools.islice(placed, 6))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(taken))
    np.testing.assert_array_equal([batch["labels"] for batch in taken], labels_of(source, 6))


def test_prefetch_stays_depth_ahead_and_ends_with_its_input():
    placed = []
    taken = prefetch(iter(range(5)), lambda batch: placed.append(batch) or batch, depth=2)
    ahead = [len(placed) - batch - 1 for batch in taken]
    assert ahead == [2, 2, 2, 1, 0] and placed == list(range(5))


def test_closing_stops_the_reading_threads(source):
    def readers():
        return [thread for thread in threading.enumerate() if "grain" in thread.name]

    iterator = batches(source, BATCH, 0, 0)
    placed = prefetch(iterator, jax.device_put)
    next(placed)
    assert readers()
    placed.close()
    for thread in readers():
        thread.join(timeout=5)
    assert not readers()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)
