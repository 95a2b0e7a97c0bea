"""SiT with SRA in plain PyTorch, written to be fast: the peer that ours is measured against.

It has what makes PyTorch fast: bfloat16 autocast, `scaled_dot_product_attention`, `torch.compile`,
fused AdamW, a foreach EMA, and a teacher that stops at its block. (TF32 is the process's setting:
`torch.set_float32_matmul_precision("high")`.) Model and step are those of `sra_jax`. Parameters
have the names of the PyTorch releases, so the state dict of `sra_jax.torch_weights.to_torch` loads.
Images are [B, C, H, W] here. Needs PyTorch and numpy alone.
"""

import copy
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

COMPILED = ("no", "blocks", "whole")


class Layout(Protocol):
    """The fields of `sra_jax.models.LatentLayout` that the model reads; latents are square."""

    height: int
    channels: int
    patch: int


class Labels(Protocol):
    """The field of `sra_jax.conditioning.ClassLabels` that the model reads."""

    num_classes: int


class Shape(Protocol):
    """The fields of `sra_jax.models.DiTConfig` that the model reads."""

    layout: Layout
    conditioning: Labels
    width: int
    depth: int
    num_heads: int


class Blocks(Protocol):
    """The fields of `sra_jax.methods.SRA` that the loss reads; blocks count from 1."""

    student_block: int
    teacher_block: int
    gap_max: float


class Example(NamedTuple):
    """Inputs of the loss: latents and noise [B, C, H, W], labels and times [B]."""

    x: Tensor
    labels: Tensor
    noise: Tensor
    t: Tensor
    t_teacher: Tensor


class Attention(nn.Module):
    """Multi-head self-attention over tokens [B, N, D]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        h = F.scaled_dot_product_attention(q, k, v)
        return self.proj(h.transpose(1, 2).reshape(batch, tokens, width))


class MLP(nn.Module):
    """Linear, GELU (tanh), linear."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Transformer block with adaLN-zero conditioning: tokens [B, N, D], conditioning [B, D]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = MLP(width, 4 * width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        modulation = self.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        x = x + gate1 * self.attn(modulate(x, shift1, scale1))
        return x + gate2 * self.mlp(modulate(x, shift2, scale2))


class FinalLayer(nn.Module):
    """Tokens [B, N, D], conditioning [B, D] -> the values of each patch [B, N, out]."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=-1)
        return self.linear(modulate(x, shift, scale))


class PatchEmbedder(nn.Module):
    """Images [B, C, H, W] -> tokens [B, N, D]."""

    def __init__(self, channels: int, patch: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimeEmbedder(nn.Module):
    """Times [B] -> vectors [B, D], in float32 as bfloat16 blurs neighbouring times."""

    def __init__(self, width: int, frequencies: int = 256, max_period: float = 10_000):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))
        half = frequencies // 2
        table = torch.exp(-math.log(max_period) * torch.arange(half) / half)
        self.register_buffer("table", table, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        with torch.autocast(t.device.type, enabled=False):
            angles = t[:, None] * self.table
            return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class LabelEmbedder(nn.Module):
    """Labels [B] -> vectors [B, D]; the last row of the table is the null class."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


class ProjectionHead(nn.Module):
    """Features [B, N, D] -> [B, N, D]."""

    def __init__(self, width: int):
        super().__init__()
        self.linear1 = nn.Linear(width, 2 * width)
        self.linear2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.silu(self.linear1(x)))


class SiT(nn.Module):
    """SiT, with SRA's projection head if `head`.

    Weights are drawn as DiT's, except that weights which DiT starts at zero (modulation, output)
    are normal with a deviation of 0.02: a GPU multiplies zeros faster, so a fresh model would run
    faster than a trained one. The position table is zero until a state dict brings it.
    """

    def __init__(self, shape: Shape, head: bool):
        super().__init__()
        width, patch, channels = shape.width, shape.layout.patch, shape.layout.channels
        self.patch, self.grid = patch, shape.layout.height // patch
        self.channels, self.num_classes = channels, shape.conditioning.num_classes
        self.x_embedder = PatchEmbedder(channels, patch, width)
        self.t_embedder = TimeEmbedder(width)
        self.y_embedder = LabelEmbedder(self.num_classes, width)
        positions = torch.zeros(1, self.grid**2, width)
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, shape.num_heads) for _ in range(shape.depth))
        self.final_layer = FinalLayer(width, patch**2 * channels)
        if head:
            self.ap_head = ProjectionHead(width)
        self.apply(_draw_weights)
        for block in (*self.blocks, self.final_layer):
            nn.init.normal_(block.adaLN_modulation[1].weight, std=0.02)
        nn.init.normal_(self.final_layer.linear.weight, std=0.02)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        labels: Tensor,
        tap: int | None = None,
        stop_at: int | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Predicts from noisy latents `x` [B, C, H, W], times `t` [B] and `labels` [B].

        Returns:
          The velocity [B, C, H, W] in float32, None if stopped, and the output [B, N, D] of block
          `tap`. `stop_at=k` computes nothing above block k.
        """
        tokens = self.x_embedder(x)
        tokens = tokens + self.pos_embed.to(tokens.dtype)
        c = self.t_embedder(t) + self.y_embedder(labels)
        feature = None
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, c)
            feature = tokens if number == tap else feature
            if number == stop_at:
                return None, feature
        return self.unpatchify(self.final_layer(tokens, c)).float(), feature

    def unpatchify(self, values: Tensor) -> Tensor:
        """[B, N, patch * patch * C] -> [B, C, H, W]."""
        side, patch = self.grid, self.patch
        values = values.view(len(values), side, side, patch, patch, -1)
        return values.permute(0, 5, 1, 3, 2, 4).reshape(len(values), -1, side * patch, side * patch)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm of `x` [B, N, D], then shifted and scaled by vectors [B, 1, D]."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class Training:
    """A student, its EMA teacher, an optimiser, and the step that updates them.

    `blocks` says what SRA aligns; None is plain SiT. `compiled` is "no", "blocks" (each block by
    itself: PyTorch compiles one for all) or "whole" (the loss in one graph); `backend` compiles.
    `dtype` is that of the matrix products; parameters, optimiser and EMA are float32.
    """

    def __init__(
        self,
        student: SiT,
        blocks: Blocks | None,
        compiled: str = "no",
        *,
        dtype: torch.dtype = torch.float32,
        backend: str = "inductor",
        weight: float = 0.2,
        learning_rate: float = 1e-4,
        eps: float = 1e-8,
        ema_decay: float = 0.9999,
        label_dropout: float = 0.1,
    ):
        self.student, self.blocks, self.weight = student, blocks, weight
        self.teacher = copy.deepcopy(student).requires_grad_(False)
        self._dtype, self._label_dropout = dtype, label_dropout
        self._average = get_ema_multi_avg_fn(ema_decay)
        self._averages, self._values = list(self.teacher.parameters()), list(student.parameters())
        self._trained = [p for p in student.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._trained, learning_rate, (0.9, 0.999), eps, weight_decay=0, fused=True
        )
        self._loss: Callable[[Example], tuple[Tensor, Tensor]] = self.loss
        if compiled == "blocks":
            compile_blocks(student, backend)
            compile_blocks(self.teacher, backend)
        elif compiled == "whole":
            self._loss = torch.compile(self.loss, backend=backend)

    def draw(self, moments: Tensor, labels: Tensor) -> Example:
        """Draws latents from `moments` [B, 2 C, H, W] (mean, standard deviation), noise and times,
        and drops some of the `labels` [B]."""
        mean, std = moments.float().chunk(2, dim=1)
        x = mean + std * torch.randn_like(mean)
        t, u, dropped = torch.rand(3, len(x), device=x.device)
        gap = self.blocks.gap_max * u if self.blocks else 0
        labels = torch.where(dropped < self._label_dropout, self.student.num_classes, labels)
        return Example(x, labels, torch.randn_like(x), t, (t - gap).clamp(0, 1))

    def loss(self, example: Example) -> tuple[Tensor, Tensor]:
        """The loss [] to minimise and the velocity [B, C, H, W] (arXiv 2505.02831, section 3)."""
        x, labels, noise, t, t_teacher = example
        tap = self.blocks.student_block if self.blocks else None
        velocity, feature = self.student(corrupt(x, noise, t), t, labels, tap)
        loss = F.mse_loss(velocity, noise - x)
        if self.blocks is None:
            return loss, velocity
        with torch.no_grad():
            block = self.blocks.teacher_block
            x_teacher = corrupt(x, noise, t_teacher)
            _, target = self.teacher(x_teacher, t_teacher, labels, block, stop_at=block)
        projected = self.student.ap_head(feature)
        alignment = F.smooth_l1_loss(projected.float(), target.float(), beta=0.05)
        return loss + self.weight * alignment, velocity

    def step(self, example: Example) -> Tensor:
        """One update by `example`; the loss [], for which nothing has waited."""
        with computing(example.x.device, self._dtype):
            loss, _ = self._loss(example)
        loss.backward()
        nn.utils.clip_grad_norm_(self._trained, 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self._average(self._averages, self._values, None)
        return loss.detach()


@torch.no_grad()
def sample(
    model: SiT,
    z: Tensor,
    labels: Tensor,
    solver: str,
    steps: int,
    scale: float = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
    noise: Callable[[int], Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Latents [B, C, H, W] from noise `z`: "sde" (Euler-Maruyama, then a step by the drift alone)
    or "heun", with classifier-free guidance by `scale` in steps that start inside `interval`.

    `noise(i)` is the SDE's noise of step i; drawn here if not given.
    """
    noise = noise or (lambda _: torch.randn_like(z))
    null = torch.full_like(labels, model.num_classes)

    def velocity(x: Tensor, t: float, guided: bool) -> Tensor:
        times = torch.full((len(x),), t, device=x.device)
        with computing(x.device, dtype):
            if not guided:
                return model(x, times, labels)[0]
            both, _ = model(torch.cat([x, x]), times.repeat(2), torch.cat([labels, null]))
        conditional, unconditional = both.chunk(2)
        return unconditional + scale * (conditional - unconditional)

    x = z
    for number, (t, end) in enumerate(_intervals(solver, steps)):
        dt, guided = end - t, scale != 1 and interval[0] <= t <= interval[1]
        v = velocity(x, t, guided)
        if solver == "heun":
            after = velocity(x + dt * v, end, guided) if number < steps - 1 else v
            x = x + dt * (v + after) / 2
            continue
        w = 2 * t  # linear path: alpha / alpha' is t - 1, sigma^2 - (t - 1) sigma is t
        score = ((t - 1) * v - x) / t
        x = x + dt * (v - w / 2 * score)
        if number < steps - 1:
            x = x + math.sqrt(w * abs(dt)) * noise(number)
    return x


def compile_blocks(model: SiT, backend: str) -> None:
    """Compiles each block by itself, once for each batch size: the first one serves for all."""
    for block in model.blocks:
        block.compile(backend=backend, dynamic=False)


def computing(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Computes matrix products in `dtype` inside of it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def corrupt(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Noisy latents of `x` [B, C, H, W] at times `t` [B]."""
    t = t[:, None, None, None]
    return (1 - t) * x + t * noise


def _intervals(solver: str, steps: int) -> Iterator[tuple[float, float]]:
    """Start and end of each step."""
    times = {
        "heun": np.linspace(1, 0, steps + 1),
        "sde": np.append(np.linspace(1, 0.04, steps), 0.0),
    }[solver]
    return zip(times[:-1].tolist(), times[1:].tolist(), strict=True)


def _draw_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
