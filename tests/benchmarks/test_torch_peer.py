"""The PyTorch peer computes what ours computes; each of its contestants does the same work."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import peer_check
import pytest
import torch
import torch_sit
from contestants import Work, make_contestant
from published_models import alignment, transformer

from sra_jax.conditioning import ClassLabels
from sra_jax.methods import SRA
from sra_jax.models import DiTConfig, LatentLayout

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "torch_peer.py"
TINY = transformer("tiny", "sit", 8)
OTHER = DiTConfig(
    LatentLayout(12, 12, 3, patch=4), ClassLabels(5), outputs=1, width=48, depth=3, num_heads=3
)


@pytest.mark.parametrize(
    ("config", "sra", "quantities"),
    [(TINY, alignment("tiny", "sit"), 7), (OTHER, None, 5)],
    ids=["tiny + SRA", "plain, of another shape"],
)
def test_peer_agrees_with_ours(config, sra, quantities):
    found = list(peer_check.compare(config, sra))
    assert len(found) == quantities
    for quantity, error, tensor in found:
        assert error < 1e-5, f"{quantity} {tensor}"


@pytest.mark.parametrize(
    ("name", "wrong", "quantity"),
    [
        ("corrupt", lambda x, noise, t: x + t[:, None, None, None] * noise, "prediction"),
        ("get_ema_multi_avg_fn", lambda decay: lambda *_: None, "EMA after it"),
    ],
)
def test_comparison_notices_a_wrong_peer(monkeypatch, name, wrong, quantity):
    monkeypatch.setattr(torch_sit, name, wrong)
    found = peer_check.compare(TINY, alignment("tiny", "sit"))
    assert next(each.error for each in found if each.quantity == quantity) > 1e-3


def test_tensors_that_are_missing_or_not_numbers_count_as_wrong():
    a, b = np.ones(2), np.ones(3)
    assert peer_check._worst({"a": a, "b": b}, {"a": a, "b": b * 1.5}) == (1 / 3, "b")
    assert peer_check._worst({"a": a, "b": b * np.nan}, {"a": a, "b": b}) == (np.inf, "b")
    assert peer_check._worst({"a": a}, {"a": a, "b": b}) == (np.inf, "b")


@pytest.mark.parametrize("compiled", ["blocks", "whole"])
def test_compiled_training_is_the_eager_one(compiled):
    def losses(compiled):
        torch.manual_seed(0)
        student = torch_sit.SiT(dataclasses.replace(TINY, depth=2), head=True)
        training = torch_sit.Training(
            student, SRA(student_block=1, teacher_block=2), compiled, backend="aot_eager"
        )
        moments, labels = torch.rand(4, 8, 8, 8), torch.tensor([1, 2, 3, 4])
        return [training.step(training.draw(moments, labels)).item() for _ in range(3)]

    np.testing.assert_allclose(losses(compiled), losses("no"), rtol=1e-5)


def test_compiled_blocks_share_one_program():
    """Otherwise compile time would grow with depth."""
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounter()
    model = torch_sit.SiT(TINY, head=False)
    torch_sit.compile_blocks(model, counter)
    with torch.no_grad():
        model(torch.rand(2, 4, 8, 8), torch.rand(2), torch.tensor([1, 2]))
    assert counter.frame_count == 1


def test_work_is_counted_alike_for_all():
    work = Work("sde", "tiny", 8, batch=2, steps=10, device="cpu")
    passes = sum(2 if t <= 0.7 else 1 for t in np.linspace(1, 0.04, 10))
    operations = passes * work.batch * forward_operations(TINY)
    training = work._replace(contest="train", steps=3)
    assert work.images == 2 and training.images == 6
    assert operations < work.flops < 1.05 * operations  # embeddings and the last layer are left out


def forward_operations(config):
    """Operations of the blocks alone."""
    tokens, width = config.layout.tokens, config.width
    return 2 * config.depth * (12 * tokens * width**2 + 6 * width**2 + 2 * tokens**2 * width)


def test_release_that_is_missing_is_refused():
    command = [sys.executable, SCRIPT, "--release=/nowhere", "--contests=train"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert "/nowhere has no SiT-SRA/train.py" in result.stderr


def test_sampling_contestant_runs():
    work = Work("heun", "tiny", 8, batch=2, steps=1, device="cpu")
    for name in ("ours", "eager"):
        make_contestant(name, work, release=None).call()
