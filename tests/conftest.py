"""Eight virtual CPU devices and quick compiles, set before JAX starts; golden numbers as fixtures.

Compiling without LLVM's optimisations takes a third of the time, and agrees with the golden numbers
as well. Set SRA_JAX_TEST_OPTIMIZED=1 to compile as users do. What is compiled once is kept for the
other tests of this process, and for the processes that they start.
"""

import os
import tempfile

import jax
import jax.numpy as jnp
import pytest

QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

flags = os.environ.get("XLA_FLAGS", "")
if not os.environ.get("SRA_JAX_TEST_OPTIMIZED"):
    os.environ["XLA_FLAGS"] = f"{QUICK} {flags}".strip()  # processes that tests start inherit it
if "xla_force_host_platform_device_count" not in flags:
    jax.config.update("jax_num_cpu_devices", 8)  # and they do not inherit this
compiled = tempfile.TemporaryDirectory(prefix="sra_jax_compiled_")
for name, value in {
    "compilation_cache_dir": compiled.name,
    "persistent_cache_min_compile_time_secs": 0.0,
}.items():
    jax.config.update(f"jax_{name}", value)
    os.environ[f"JAX_{name.upper()}"] = str(value)

import commands  # noqa: E402
from golden import Golden, Jitted  # noqa: E402

# Files of few and long tests, which would leave a core idle at the end.
FIRST = ("hosts", "resume", "disk", "bucket", "prober", "monitor", "notebook", "learning", "gpu")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.path.stem.endswith(FIRST))


@pytest.fixture(scope="session")
def sit():
    """The golden numbers of SiT."""
    return Golden("sit")


@pytest.fixture(scope="session")
def dit():
    """The golden numbers of DiT."""
    return Golden("dit")


@pytest.fixture(scope="session")
def sit_model(sit):
    """The golden SiT's model, its `apply` compiled once for all tests."""
    return Jitted(sit.config)


@pytest.fixture(scope="session")
def sit_inputs(sit):
    """What the golden SiT's forward pass was given: parameters, images, times and labels."""
    return sit.params("student"), sit.images("fwd/x"), sit["fwd/t"], sit.jax("fwd/y", jnp.int32)


@pytest.fixture(scope="session")
def dit_model(dit):
    """The golden DiT's model, its `apply` compiled once for all tests."""
    return Jitted(dit.config)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """The workdir of a small run on the digits, with checkpoints 60 and 120, to look at only."""
    workdir = tmp_path_factory.mktemp("digits") / "run"
    flags = commands.digits(
        workdir,
        model__width=32,
        model__depth=4,
        method__sra__teacher_block=3,
        optimizer__learning_rate=4e-3,
        train__steps=120,
        train__batch_size=64,
        train__ema_decay=0.9,
        train__checkpoint_every=60,
    )
    result = commands.run("train", flags)
    assert (result.code, result.err) == (0, "")
    return workdir


@pytest.fixture(scope="session")
def forks():
    """Runs commands in forks of one process."""
    with commands.Forks() as server:
        yield server


@pytest.fixture(scope="session")
def finished(forks, tmp_path_factory):
    """The workdir of a run of six steps, with checkpoints 3 and 6, to look at only."""
    workdir = tmp_path_factory.mktemp("finished")
    flags = commands.digits(workdir, train__steps=6, train__log_every=2, train__checkpoint_every=3)
    result = forks.run("train", flags)
    assert (result.code, result.err) == (0, "")
    assert "step 2/6" in result.out and "finished: step 6 is saved" in result.out
    assert str(workdir) in result.out
    return workdir
