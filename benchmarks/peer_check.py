"""Comparison of the PyTorch peer with ours, on the same weights, in float32.

The errors are norms of the difference over norms of ours.
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from published_models import alignment, make_objective, process, transformer
from records import Record
from torch_sit import Example as TorchExample
from torch_sit import SiT, Training, sample

from sra_jax.methods import SRA, Example
from sra_jax.models import DiT, DiTConfig
from sra_jax.sampling.guidance import Guidance, make_predictors
from sra_jax.sampling.solvers import make_steps, solve
from sra_jax.torch_weights import from_torch, to_torch
from sra_jax.training.optimizer import OptimizerConfig, make_optimizer
from sra_jax.training.state import TrainState
from sra_jax.training.step import accumulate_gradients, apply_gradients

CPU_TOLERANCE, DEVICE_TOLERANCE = 1e-5, 1e-4
# Adam divides a gradient by its own size. A large epsilon keeps it from doing so to mere rounding.
STEP = {"learning_rate": 1e-2, "eps": 1e-2}
EMA_DECAY = 0.9
GUIDED = (1.8, (0.2, 0.7))


class Agreement(NamedTuple):
    """The error of one quantity, and of which tensor if the quantity has many."""

    quantity: str
    error: float
    tensor: str = ""


def find_disagreement(model: str, device: str, record: Record) -> str | None:
    """Compares the named model with SRA and, unless it is tiny, without.

    Returns:
      One line on what is beyond the tolerance; None if nothing is.
    """
    tolerance = CPU_TOLERANCE if device == "cpu" else DEVICE_TOLERANCE
    table = record.table("agreement", ("model", "quantity", "tensor", "error", "tolerance"))
    side = 8 if model == "tiny" else 32
    config, beyond = transformer(model, "sit", side, dtype="float32"), []
    for sra in (alignment(model, "sit"), *([] if model == "tiny" else [None])):
        for quantity, error, tensor in compare(config, sra, device):
            named = f"{model}{' + SRA' if sra else ''}"
            values = {"quantity": quantity, "tensor": tensor, "error": error}
            table.add(model=named, tolerance=tolerance, **values)
            if not error <= tolerance:
                beyond.append(f"{quantity} of {named}")
    if not beyond:
        return None
    return f"error: PyTorch and ours differ beyond {tolerance:g} in {', '.join(beyond)}"


def compare(
    config: DiTConfig, sra: SRA | None, device: str = "cpu", seed: int = 0
) -> Iterator[Agreement]:
    """Compares predictions, losses, gradients, a step with its EMA, and samples (without `sra` all
    but the samples) of random weights, student's and teacher's, none of them zero."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with jax.default_matmul_precision("highest"):
            yield from _compare(config, sra, device, seed)
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = True


def _compare(config, sra, device, seed):
    draws = np.random.default_rng(seed)
    torch.manual_seed(seed)
    with torch.device(device):
        student, teacher = (_random_model(config, sra is not None) for _ in range(2))
    training = Training(student, sra, **STEP, ema_decay=EMA_DECAY)
    training.teacher.load_state_dict(teacher.state_dict())
    example = _draw_example(config, draws)

    ours = _our_step(config, sra, _state_dict(student), _state_dict(teacher), example)
    loss, velocity = training.loss(_to_torch(example, device))
    yield Agreement("prediction", _error(_channels_last(velocity), ours["prediction"]))
    yield Agreement("loss", _error(loss.detach().cpu(), ours["loss"]))
    loss.backward()
    gradients = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    gradients = {name: _numpy(gradient) for name, gradient in gradients.items()}
    del ours["gradient"]["pos_embed"]  # which nobody trains
    yield Agreement("gradient", *_worst(gradients, ours["gradient"]))
    training.optimizer.zero_grad(set_to_none=True)
    training.step(_to_torch(example, device))
    yield Agreement("after a step", *_worst(_state_dict(student), ours["params"]))
    yield Agreement("EMA after it", *_worst(_state_dict(training.teacher), ours["ema"]))
    if sra is not None:
        for solver in ("sde", "heun"):
            yield Agreement(f"sample, {solver}", _compare_samples(config, student, solver, draws))


def _random_model(config, head) -> SiT:
    model = SiT(config, head)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.05 * torch.randn_like(weights))
    return model


def _draw_example(config: DiTConfig, draws: np.random.Generator) -> Example:
    batch = 4
    x, noise = draws.normal(size=(2, batch, *config.layout.shape)).astype(np.float32)
    labels = draws.integers(config.conditioning.num_classes + 1, size=batch, dtype=np.int32)
    t = draws.uniform(size=batch).astype(np.float32)
    t_teacher = np.maximum(t - np.float32(0.1), 0)
    return Example(x, {"labels": labels}, noise, t, {}, {"sra": {"t_teacher": t_teacher}})


def _our_step(config, sra, student, teacher, example) -> dict:
    """The same quantities by ours, in PyTorch's names and layouts."""
    objective = make_objective(config, sra)
    optimizer = make_optimizer(OptimizerConfig(**STEP))
    params, ema = from_torch(student, config), from_torch(teacher, config)

    @jax.jit
    def step(state: TrainState, example: Example):
        loss = partial(objective, ema=state.ema, state={}, step=state.step)
        gradient, (metrics, _) = accumulate_gradients(loss, state.params, example, microbatches=1)
        x_t = objective.process.corrupt(example.x, example.noise, example.t)
        out = objective.trunk.apply(state.params["trunk"], x_t, example.t, example.condition)
        new = apply_gradients(state, gradient, optimizer, EMA_DECAY)
        return new, gradient, metrics["loss"], out.prediction

    state = TrainState(jnp.int32(0), params, ema, optimizer.init(params), {})
    new, gradient, loss, prediction = jax.device_get(step(state, example))
    return {
        "prediction": prediction,
        "loss": loss,
        "gradient": to_torch(gradient, config),
        "params": to_torch(new.params, config),
        "ema": to_torch(new.ema, config),
    }


def _compare_samples(config, model, solver, draws) -> float:
    """The error of guided samples in five steps, from the same noise."""
    scale, interval = GUIDED
    device = next(model.parameters()).device
    z, *noise = draws.normal(size=(6, 2, *config.layout.shape)).astype(np.float32)
    labels = np.array([1, 3], np.int32)
    theirs = sample(
        model,
        _images(z, device),
        torch.as_tensor(labels, device=device).long(),
        solver,
        5,
        scale,
        interval,
        noise=lambda i: _images(noise[i], device),
    )
    guidance, flow = Guidance(scale, *interval), process("sit")
    params = from_torch(_state_dict(model), config)

    @jax.jit
    def draw(params, z, noise):
        network = partial(DiT(config).apply, params["trunk"])
        condition = {"labels": jnp.asarray(labels)}
        predictors = make_predictors(network, guidance, config.conditioning, condition)
        steps = make_steps(flow, solver, 5)
        return solve(flow, steps, predictors, guidance, lambda i: noise[i], z)

    return _error(_channels_last(theirs), draw(params, z, np.stack(noise)))


def _to_torch(example: Example, device: str) -> TorchExample:
    x, noise = (_images(a, device) for a in (example.x, example.noise))
    labels = torch.as_tensor(example.condition["labels"], device=device).long()
    times = (example.t, example.draws["sra"]["t_teacher"])
    times = (torch.as_tensor(a, device=device) for a in times)
    return TorchExample(x, labels, noise, *times)


def _images(a: np.ndarray, device) -> torch.Tensor:
    """[..., H, W, C] -> [..., C, H, W]."""
    return torch.as_tensor(np.moveaxis(a, -1, -3).copy(), device=device)


def _channels_last(a: torch.Tensor) -> np.ndarray:
    return np.moveaxis(_numpy(a), -3, -1)


def _state_dict(model: SiT) -> dict[str, np.ndarray]:
    return {name: _numpy(weights) for name, weights in model.state_dict().items()}


def _numpy(a: torch.Tensor) -> np.ndarray:
    return a.detach().cpu().numpy().copy()


def _worst(theirs: Mapping, ours: Mapping) -> tuple[float, str]:
    """The largest error over the tensors, and its name; of one that is missing it is infinite."""
    if missing := theirs.keys() ^ ours.keys():
        return math.inf, min(missing)
    return max((_error(theirs[name], ours[name]), name) for name in theirs)


def _error(theirs, ours) -> float:
    theirs, ours = np.asarray(theirs, np.float64), np.asarray(ours, np.float64)
    error = float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours))
    return math.inf if math.isnan(error) else error  # nothing is larger than NaN
