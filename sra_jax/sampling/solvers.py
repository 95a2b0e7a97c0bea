"""From noise to data: the solvers, and the scan that runs them.

A solver turns a process and a number of steps into a list of `Step`s on the host, times in
float64. `solve` runs neighbours of one kind as one scan: compile time does not grow with the steps.
"""

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sra_jax.core.errors import InputError, expect_one_of
from sra_jax.processes import DDPM, Interpolant, Process
from sra_jax.processes.ddpm import learned_range
from sra_jax.sampling.guidance import Guidance

MAX_STEPS = 100_000

Predict = Callable[[jax.Array, jax.Array], jax.Array]
Rule = Callable[[Process, Predict, jax.Array, jax.Array, Callable[[], jax.Array]], jax.Array]


class Step(NamedTuple):
    """One step: `rule(process, predict, x, row, noise)` gives the next x [B, H, W, C].

    `row` holds this step's constants, `noise()` draws a standard normal; `time`, in [0, 1], is its
    start.
    """

    rule: Rule
    time: float
    row: tuple[float, ...]


def solve(
    process: Process,
    steps: list[Step],
    predictors: Callable[[bool], Predict],
    guidance: Guidance,
    noise: Callable[[jax.Array], jax.Array],
    x: jax.Array,
) -> jax.Array:
    """Runs `steps` from `x` [B, H, W, C]; `noise(i)` is the noise of the i-th."""

    def kind(step: Step):
        return step.rule, guidance.active(step.time)

    first = 0
    for (rule, guided), group in groupby(steps, key=kind):
        rows = np.array([step.row for step in group], np.float32)
        numbers = np.arange(first, first + len(rows))
        predict = predictors(guided)

        def body(x, inputs, rule=rule, predict=predict):
            number, row = inputs
            return rule(process, predict, x, row, lambda: noise(number)), None

        x, _ = jax.lax.scan(body, x, (jnp.asarray(numbers), jnp.asarray(rows)))
        first += len(rows)
    return x


def make_steps(process: Process, solver: str, steps: int | tuple[int, ...]) -> list[Step]:
    """The steps of a named solver. Several counts respace sections of a discrete chain.

    Raises:
      InputError: an unknown solver for this process, or a number of steps that it cannot make.
    """
    expect_one_of("solver", solver, process.solvers)
    return SOLVERS[solver](process, steps)


def parse_steps(text: str) -> int | tuple[int, ...]:
    """ "250" -> 250, "10,20" -> (10, 20). Raises InputError for anything else, or too many."""
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"steps is {text!r}, expected a number, or for DiT numbers joined by commas"
        ) from None
    if max(counts) > MAX_STEPS:
        raise InputError(f"steps is {text}, expected at most {MAX_STEPS}; take fewer")
    return counts[0] if len(counts) == 1 else counts


# Rules of a continuous path. A row is (time, time of the next step - time).


def euler_step(process, predict, x, row, noise):
    """One step along the velocity."""
    t, dt = row
    return x + dt * _velocity(process, predict, x, t)


def heun_step(process, predict, x, row, noise):
    """Along the mean of the velocities at the start and at the end of an Euler step."""
    t, dt = row
    start = _velocity(process, predict, x, t)
    end = _velocity(process, predict, x + dt * start, t + dt)
    return x + dt * (start + end) / 2


def sde_mean_step(process, predict, x, row, noise):
    """The reverse SDE's drift v - w/2 score, without its noise."""
    t, dt = row
    times = jnp.full(len(x), t)
    velocity = process.velocity(predict(x, t), x, times)
    w = process.diffusion(t)
    return x + dt * (velocity - w / 2 * process.score(velocity, x, times))


def sde_step(process, predict, x, row, noise):
    """Euler-Maruyama: the drift, and noise of variance w |dt|."""
    t, dt = row
    mean = sde_mean_step(process, predict, x, row, noise)
    return mean + jnp.sqrt(process.diffusion(t) * jnp.abs(dt)) * noise()


def _velocity(process, predict, x, t):
    return process.velocity(predict(x, t), x, jnp.full(len(x), t))


def _along(process: Process, times: np.ndarray, rules: Iterable[Rule]) -> list[Step]:
    return [
        Step(rule, process.normalized_time(start), (start, end - start))
        for rule, start, end in zip(rules, times[:-1], times[1:], strict=True)
    ]


def euler(process: Interpolant, steps: int) -> list[Step]:
    """Euler's method for the ODE; first order."""
    steps = _single(steps, at_least=1)
    return _along(process, process.ode_times(steps), [euler_step] * steps)


def heun(process: Interpolant, steps: int) -> list[Step]:
    """Heun's method for the ODE; second order. Its last step is Euler's: at t = 0 the velocity need
    not exist."""
    steps = _single(steps, at_least=1)
    rules = [heun_step] * (steps - 1) + [euler_step]
    return _along(process, process.ode_times(steps), rules)


def sde(process: Interpolant, steps: int) -> list[Step]:
    """Euler-Maruyama for the reverse SDE, ending with a step by the drift alone (SiT, sec. 2)."""
    steps = _single(steps, at_least=2)
    rules = [sde_step] * (steps - 1) + [sde_mean_step]
    return _along(process, process.sde_times(steps), rules)


# Rules of a discrete chain. Its rows are `ChainRow`s: constants worked out in float64, because near
# the data 1 / bar - 1 loses its digits in float32.


class ChainRow(NamedTuple):
    """Constants of one step from model time `t`.

    x_0 = `x0_from_xt` x_t - `x0_from_noise` noise. Under DDPM x_{t-1} has mean `mean_from_x0` x_0 +
    `mean_from_xt` x_t and a log variance between the two bounds; under DDIM it is `signal` x_0 +
    `sigma` noise.
    """

    t: jax.Array
    x0_from_xt: jax.Array
    x0_from_noise: jax.Array
    mean_from_x0: jax.Array
    mean_from_xt: jax.Array
    signal: jax.Array
    sigma: jax.Array
    log_variance_low: jax.Array
    log_variance_high: jax.Array


def ddpm_mean_step(process, predict, x, row, noise):
    """The mean of p(x_{t-1} | x_t): DDPM's last step."""
    return _ddpm_moments(predict, x, row)[0]


def ddpm_step(process, predict, x, row, noise):
    """A draw from p(x_{t-1} | x_t), whose variance the model predicts."""
    mean, log_variance = _ddpm_moments(predict, x, row)
    return mean + jnp.exp(0.5 * log_variance) * noise()


def ddim_step(process, predict, x, row, noise):
    """DDIM's step without noise (Song et al. 2021, eq. 12)."""
    row = ChainRow(*row)
    predicted = predict(x, row.t)[..., : x.shape[-1]]
    x0 = row.x0_from_xt * x - row.x0_from_noise * predicted
    return row.signal * x0 + row.sigma * predicted


def _ddpm_moments(predict, x, row):
    row = ChainRow(*row)
    predicted, variance = jnp.split(predict(x, row.t), 2, axis=-1)
    x0 = row.x0_from_xt * x - row.x0_from_noise * predicted
    mean = row.mean_from_x0 * x0 + row.mean_from_xt * x
    return mean, learned_range(variance, row.log_variance_low, row.log_variance_high)


def ddpm(process: DDPM, steps: int | tuple[int, ...]) -> list[Step]:
    """DDPM's ancestral sampling on a respaced chain; the last step adds no noise."""
    rows = _chain_rows(process, steps)
    return _down_the_chain(process, rows, [ddpm_step] * (len(rows) - 1) + [ddpm_mean_step])


def ddim(process: DDPM, steps: int | tuple[int, ...]) -> list[Step]:
    """DDIM, deterministic, on a respaced chain."""
    rows = _chain_rows(process, steps)
    return _down_the_chain(process, rows, [ddim_step] * len(rows))


def _chain_rows(process: DDPM, steps: int | tuple[int, ...]) -> list[ChainRow]:
    chain = process.respace(steps)
    columns = ChainRow(
        t=chain.timesteps,
        x0_from_xt=np.sqrt(1 / chain.bar),
        x0_from_noise=np.sqrt(1 / chain.bar - 1),
        mean_from_x0=chain.from_x0,
        mean_from_xt=chain.from_xt,
        signal=np.sqrt(chain.bar_previous),
        sigma=np.sqrt(1 - chain.bar_previous),
        log_variance_low=chain.posterior_log_variance,
        log_variance_high=np.log(chain.betas),
    )
    return [ChainRow(*row) for row in zip(*columns, strict=True)][::-1]


def _down_the_chain(process: DDPM, rows: list[ChainRow], rules: list[Rule]) -> list[Step]:
    pairs = zip(rules, rows, strict=True)
    return [Step(rule, process.normalized_time(row.t), row) for rule, row in pairs]


def _single(steps: int | tuple[int, ...], at_least: int) -> int:
    if not isinstance(steps, int) or steps < at_least:
        raise InputError(f"steps is {steps}, expected one number of at least {at_least}")
    return steps


SOLVERS: dict[str, Callable[[Process, int | tuple[int, ...]], list[Step]]] = {
    "euler": euler,
    "heun": heun,
    "sde": sde,
    "ddpm": ddpm,
    "ddim": ddim,
}
