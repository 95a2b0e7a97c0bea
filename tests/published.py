"""Checkpoints as the published training scripts write them, made of golden or random weights; and
the original SiT, in plain PyTorch. Written from the releases, not from our code."""

import argparse
import math

import numpy as np
import torch
import torch.nn.functional as F

ARGS = {
    "sra": {"model": "SiT-B/2", "resolution": 256, "path_type": "linear", "prediction": "v"},
    "repa": {"model": "SiT-B/2", "resolution": 256, "path_type": "linear", "prediction": "v"},
    "sit": {"model": "SiT-B/2", "image_size": 256, "path_type": "Linear", "prediction": "velocity"},
    "dit": {"model": "DiT-B/2", "image_size": 256},
}


def tensors(state, dtype=torch.float32):
    return {name: torch.tensor(np.asarray(array), dtype=dtype) for name, array in state.items()}


def without_head(state):
    return {name: array for name, array in state.items() if not name.startswith("ap_head.")}


def with_projectors(state, seed=0):
    """As REPA saves it: three layers for each encoder, and no head."""
    rng = np.random.default_rng(seed)
    width = state["pos_embed"].shape[-1]
    state = without_head(state)
    for layer, shape in {0: (40, width), 2: (40, 40), 4: (24, 40)}.items():
        state[f"projectors.0.{layer}.weight"] = rng.normal(size=shape).astype(np.float32)
        state[f"projectors.0.{layer}.bias"] = rng.normal(size=shape[0]).astype(np.float32)
    return state


def as_original_sit(state, patch, channels):
    """The same flow with data at t = 1, and a variance that is computed and never trained.

    cos(f t) and sin(f t) of our time are cos f cos(f s) + sin f sin(f s) and sin f cos(f s) -
    cos f sin(f s) of theirs, s = 1 - t.
    """
    state = without_head(state)
    frequencies = np.exp(-math.log(10000) * np.arange(128) / 128)
    weight = state["t_embedder.mlp.0.weight"].astype(np.float64)
    on_cos, on_sin = weight[:, :128], weight[:, 128:]
    state["t_embedder.mlp.0.weight"] = np.concatenate(
        [
            on_cos * np.cos(frequencies) + on_sin * np.sin(frequencies),
            on_cos * np.sin(frequencies) - on_sin * np.cos(frequencies),
        ],
        axis=1,
    ).astype(np.float32)
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        array = state[name].reshape(patch, patch, channels, -1)
        doubled = np.concatenate([-array, np.zeros_like(array)], axis=2)
        state[name] = doubled.reshape(2 * len(state[name]), *state[name].shape[1:])
    return state


def training_checkpoint(student, ema, args):
    """What the training scripts of SRA save; those of the others leave out epoch, or steps."""
    return {
        "model": tensors(student),
        "ema": tensors(ema),
        "opt": {"state": {}, "param_groups": []},
        "args": argparse.Namespace(**args),
        "epoch": 3,
        "steps": 400,
    }


def original_sit_velocity(state, x, t, y, heads):
    """The velocity [B, C, H, W] that the original SiT predicts at x [B, C, H, W] and times t [B],
    where 1 is data."""
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    tokens = F.conv2d(
        x, state["x_embedder.proj.weight"], state["x_embedder.proj.bias"], stride=patch
    )
    grid = tokens.shape[-1]
    tokens = tokens.flatten(2).transpose(1, 2) + state["pos_embed"]
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=x.dtype) / 128)
    angles = t[:, None] * frequencies
    c = torch.cat([angles.cos(), angles.sin()], dim=-1)
    c = linear(state, "t_embedder.mlp.2", F.silu(linear(state, "t_embedder.mlp.0", c)))
    c = c + state["y_embedder.embedding_table.weight"][y]
    depth = sum(name.endswith("attn.qkv.weight") for name in state)
    for i in range(depth):
        name = f"blocks.{i}"
        parts = linear(state, f"{name}.adaLN_modulation.1", F.silu(c)).chunk(6, dim=1)
        shift1, scale1, gate1, shift2, scale2, gate2 = (part[:, None] for part in parts)
        h = F.layer_norm(tokens, (width,), eps=1e-6) * (1 + scale1) + shift1
        q, k, v = (
            part.unflatten(-1, (heads, width // heads)).transpose(1, 2)
            for part in linear(state, f"{name}.attn.qkv", h).chunk(3, dim=-1)
        )
        weights = (q @ k.transpose(-1, -2) / math.sqrt(width // heads)).softmax(dim=-1)
        h = (weights @ v).transpose(1, 2).flatten(2)
        tokens = tokens + gate1 * linear(state, f"{name}.attn.proj", h)
        h = F.layer_norm(tokens, (width,), eps=1e-6) * (1 + scale2) + shift2
        h = F.gelu(linear(state, f"{name}.mlp.fc1", h), approximate="tanh")
        tokens = tokens + gate2 * linear(state, f"{name}.mlp.fc2", h)
    parts = linear(state, "final_layer.adaLN_modulation.1", F.silu(c)).chunk(2, dim=1)
    shift, scale = (part[:, None] for part in parts)
    h = F.layer_norm(tokens, (width,), eps=1e-6) * (1 + scale) + shift
    h = linear(state, "final_layer.linear", h)
    h = h.reshape(len(x), grid, grid, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
    return h.reshape(len(x), -1, grid * patch, grid * patch)[:, :channels]


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]
