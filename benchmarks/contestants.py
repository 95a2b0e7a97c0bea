"""The contestants of torch_peer.py: one piece of work, done by ours, by PyTorch, by the release.

Each is a call that does the work and waits for it. PyTorch is imported only for those that need it.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from published_models import (
    TrainJob,
    alignment,
    enliven,
    forward_flops,
    process,
    train_flops,
    transformer,
)
from sampling import count_passes
from train_step import run

from sra_jax.distributed.hardware import GIB
from sra_jax.methods import SRA
from sra_jax.models import DiT, DiTConfig
from sra_jax.sampling.guidance import Guidance
from sra_jax.sampling.sampler import make_sampler
from sra_jax.sampling.solvers import Step, make_steps

GUIDANCE = Guidance(1.8, 0.0, 0.7)


class Work(NamedTuple):
    """One timing: `steps` training steps (`contest` "train") or a sampler's ("sde" or "heun")."""

    contest: str
    model: str
    side: int
    batch: int
    steps: int
    device: str

    def config(self, attention: str = "xla") -> DiTConfig:
        return transformer(self.model, "sit", self.side, attention=attention)

    @property
    def sra(self) -> SRA:
        return alignment(self.model, "sit")

    @property
    def backend(self) -> str:
        """PyTorch's compiler. The tiny model is traced, but not made into code, which takes longer
        than all else."""
        return "aot_eager" if self.model == "tiny" else "inductor"

    @property
    def images(self) -> int:
        """Images that pass: each step's batch in training, one batch in sampling."""
        return self.batch * (self.steps if self.contest == "train" else 1)

    @property
    def flops(self) -> int:
        """Operations that the work needs, whoever does it."""
        config = self.config()
        if self.contest == "train":
            return train_flops(config, self.sra).useful * self.images
        return forward_flops(config) * count_passes(self.solver_steps(), GUIDANCE) * self.batch

    def solver_steps(self) -> list[Step]:
        return make_steps(process("sit"), self.contest, self.steps)


class Contestant(NamedTuple):
    """`call()` does the work and waits for it. `gib()` is the most memory that a call took, None if
    nobody knows. Compiling before the first call took `compile_seconds`."""

    call: Callable[[], None]
    gib: Callable[[], float | None]
    compile_seconds: float = 0.0


def make_contestant(name: str, work: Work, release: Path | None) -> Contestant:
    """The contestant `name`: "ours", "eager", "blocks", "whole" or "release".

    Raises:
      ImportError: PyTorch, or what the release needs, is missing.
    """
    if name == "ours":
        return _our_training(work) if work.contest == "train" else _our_sampling(work)
    if name == "release":
        return _released(work, release)
    compiled = {"eager": "no"}.get(name, name)
    make = _torch_training if work.contest == "train" else _torch_sampling
    return make(work, compiled)


def _our_training(work: Work) -> Contestant:
    job = TrainJob(work.config(_attention(work)), work.sra, work.batch)
    return Contestant(partial(run, job, work.steps), lambda: job.memory / GIB, job.compile_seconds)


def _our_sampling(work: Work) -> Contestant:
    config = work.config(_attention(work))
    trunk = DiT(config)
    params = jax.jit(lambda: enliven(trunk.init(jax.random.key(0))))()
    rows = jnp.arange(work.batch, dtype=jnp.uint32)
    steps = work.solver_steps()
    sampler = make_sampler(trunk, process("sit"), config.conditioning, steps, GUIDANCE)
    began = time.perf_counter()
    arguments = (params, jnp.uint32(0), rows, rows.astype(jnp.int32))
    compiled = sampler.lower(*arguments).compile()
    took = time.perf_counter() - began
    return Contestant(lambda: compiled(*arguments).block_until_ready(), lambda: None, took)


def _attention(work: Work) -> str:
    return "cudnn" if work.device == "cuda" else "xla"


def _torch_training(work: Work, compiled: str) -> Contestant:
    from torch_sit import SiT, Training

    with _torch_device(work):
        student = SiT(work.config(), head=True)
        options = {"dtype": _dtype(work), "backend": work.backend}
        training = Training(student, work.sra, compiled, **options)
    moments, labels = _torch_batch(work)

    def call():
        for _ in range(work.steps):
            training.step(training.draw(moments, labels))
        _wait(work)

    return Contestant(call, partial(_torch_gib, work))


def _torch_sampling(work: Work, compiled: str) -> Contestant:
    import torch
    from torch_sit import SiT, compile_blocks, sample

    with _torch_device(work):
        model = SiT(work.config(), head=False)
        z = torch.randn(work.batch, model.channels, work.side, work.side)
        labels = torch.arange(work.batch) % model.num_classes
    for part in (model.x_embedder, model.y_embedder, model.blocks, model.final_layer):
        part.to(_dtype(work))  # the time embedding stays in float32, as in training
    if compiled == "blocks":
        compile_blocks(model, work.backend)
    elif compiled == "whole":
        model.compile(backend=work.backend, dynamic=False)
    interval = (GUIDANCE.low, GUIDANCE.high)
    draw = partial(sample, model, z, labels, work.contest, work.steps, GUIDANCE.scale, interval)

    def call():
        draw(dtype=_dtype(work))
        _wait(work)

    return Contestant(call, partial(_torch_gib, work))


def _released(work: Work, folder: Path | None) -> Contestant:
    from torch_release import Release

    assert folder is not None
    with _torch_device(work):
        release = Release(folder, work.config(), work.sra, dtype=_dtype(work))
    moments, labels = _torch_batch(work)
    z = moments[:, : moments.shape[1] // 2].float()

    def train():
        for _ in range(work.steps):
            release.step(moments, labels)
        _wait(work)

    def sample():
        interval = (GUIDANCE.low, GUIDANCE.high)
        release.sample(z, labels, work.contest, work.steps, GUIDANCE.scale, interval)
        _wait(work)

    return Contestant(train if work.contest == "train" else sample, partial(_torch_gib, work))


def _torch_device(work: Work) -> Any:
    """Settings of PyTorch, and a context in which tensors are made on the work's device."""
    import torch

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")  # TF32
    if work.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return torch.device(work.device)


def _torch_batch(work: Work) -> tuple[Any, Any]:
    """Moments [B, 2 C, H, W] float16 and labels [B], on the device."""
    import torch

    config = work.config()
    with torch.device(work.device):
        shape = (work.batch, 2 * config.layout.channels, work.side, work.side)
        labels = torch.randint(config.conditioning.num_classes, (work.batch,))
        return torch.rand(shape).half(), labels


def _dtype(work: Work) -> Any:
    import torch

    return torch.bfloat16 if work.device == "cuda" else torch.float32


def _wait(work: Work) -> None:
    if work.device == "cuda":
        import torch

        torch.cuda.synchronize()


def _torch_gib(work: Work) -> float | None:
    if work.device != "cuda":
        return None
    import torch

    return torch.cuda.max_memory_allocated() / GIB
