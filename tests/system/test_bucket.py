"""A run in a gs:// bucket is the run on a disk. An emulator on this machine serves the bucket: like
Google's, it has no directories and no locks, takes files whole, and appends to none."""

import tempfile
import threading
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from commands import (
    devices,
    digits,
    finish,
    reported_losses,
    run,
    start,
    start_two,
    wait_until,
)
from etils import epath
from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import RequestHandler, Router
from gcp_storage_emulator.storage import Storage

from sra_jax.checkpoints.store import CheckpointStore
from sra_jax.data.embedded import ensure_embedded
from sra_jax.evaluation import history
from sra_jax.run.directory import load_model, open_directory
from sra_jax.training import tensorboard

LOG = SimpleNamespace(write_scalars=lambda *_: None, flush=lambda: None)


@pytest.fixture(scope="module")
def bucket():
    """gs://runs, for this process and for those that it starts."""
    storage, one_at_a_time, answer = Storage(use_memory_fs=True), threading.Lock(), Router.handle

    def handle(router, method):
        with one_at_a_time:
            answer(router, method)

    create_bucket("runs", storage)
    # The emulator's own server would wait for a connection on which nothing comes.
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(RequestHandler, storage))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host, port = server.server_address
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Router, "handle", handle)
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            patch.setenv(name, f"http://{host}:{port}")
        patch.setenv("GCE_METADATA_ROOT", f"{host}:1")  # nobody is asked for credentials
        patch.setenv("NO_GCE_CHECK", "true")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # which asks Google itself
        yield
    server.shutdown()
    server.server_close()


def flags(workdir, data, **overrides):
    fields = {"train__checkpoint_every": 2, "train__log_every": 2, "evaluation__grid_every": 2}
    return digits(workdir, data__path=data, **fields | overrides)


def losses(workdir, tmp_path) -> dict[int, float]:
    """By step, from all of the run's event files."""
    copies = Path(tempfile.mkdtemp(dir=tmp_path))
    for path in (workdir / "tensorboard").iterdir():
        (copies / path.name).write_bytes(path.read_bytes())
    return dict(reported_losses(copies))


def test_a_run_survives_a_kill_and_is_that_on_a_disk(bucket, tmp_path):
    data = ensure_embedded("embedded:digits", tmp_path)
    there, here = open_directory("gs://runs/digits"), epath.Path(tmp_path) / "digits"
    store = CheckpointStore(there)
    assert store.steps() == []  # and what another process writes is seen
    process = start("train", flags(there, data, train__steps=10_000))
    wait_until(lambda: len(store.steps()) >= 2, process)
    process.kill()
    process.communicate()
    last = store.steps()[-1] + 4

    result = run("train", flags(there, data, train__steps=last))
    assert result.code == 0 and "resuming from step" in result.out, result
    assert run("train", flags(here, data, train__steps=last)).code == 0
    for weights in ("ema", "student"):
        found, expected = (load_model(str(workdir), weights) for workdir in (there, here))
        assert found.step == expected.step == last
        for a, b in zip(*map(jax.tree.leaves, (found.params, expected.params)), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    picture = f"samples/step_{last:08d}.png"
    assert (there / picture).read_bytes() == (here / picture).read_bytes()
    found, expected = losses(there, tmp_path), losses(here, tmp_path)
    assert found == {step: expected[step] for step in found} and found.keys() >= {last - 2, last}


@pytest.mark.slow
def test_two_processes_share_a_run(bucket, tmp_path):
    data = ensure_embedded("embedded:digits", tmp_path)
    workdir = "gs://runs/shared"
    together = flags(workdir, data, train__steps=4, mesh__fsdp=2)
    results = [finish(process) for process in start_two("train", together)]
    assert [result.code for result in results] == [0, 0], results
    result = run("train", flags(workdir, data, train__steps=6), **devices(1))
    assert result.code == 0 and "resuming from step 4" in result.out, result


def test_measurements_are_added_to_those_before(bucket):
    workdir = epath.Path("gs://runs/measured")
    for step in (10, 20):
        history.record(
            workdir, step, {"features": "classifier"}, {"classifier_fid": 100 - step}, LOG
        )
    assert [found["step"] for found in history.read(workdir)] == [10, 20]
    assert history.best_step(workdir) == 20


def test_a_large_event_file_is_followed_by_another(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "BUCKET_FILE_BYTES", 200)
    run = epath.Path("gs://runs/events")
    writer = tensorboard.make_writer(str(run / "tensorboard"))
    for step in range(1, 7):
        writer.write_scalars(step, {"loss": 1 / step})
        writer.flush()
    writer.close()
    assert 1 < len(list((run / "tensorboard").iterdir())) < 6
    assert losses(run, tmp_path) == pytest.approx({step: 1 / step for step in range(1, 7)})
