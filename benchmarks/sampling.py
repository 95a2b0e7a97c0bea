"""How fast each solver samples, and what guidance costs, everywhere and inside an interval alone.

  python benchmarks/sampling.py [--model=XL/2] [--batch=64] [--steps=50] [--interval=0,0.7]

Random weights, which take as long as any. A step passes through the model once, Heun's twice;
guidance doubles the batch of that inside its interval. If it is paid for only there, the interval's
time lies between the other two as its passes do: 70 % of the way from none to everywhere, if that
is the share of the steps. The lines of one solver are timed in turns. Takes 3 minutes on two cores.
"""

import argparse
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from published_models import process, transformer
from timing import describe_machine, listed, print_table, ratio, spread, take_turns

from sra_jax.models import DiT
from sra_jax.sampling.guidance import Guidance
from sra_jax.sampling.sampler import make_sampler
from sra_jax.sampling.solvers import Step, heun_step, make_steps

SOLVERS = (("sit", "sde"), ("sit", "euler"), ("sit", "heun"), ("dit", "ddpm"), ("dit", "ddim"))
HEADER = ("solver", "guidance", "passes", "images/s", "ms a pass", "time over no guidance")


def main() -> None:
    """Prints each line as soon as it is known."""
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--model", default="S/8" if on_cpu else "XL/2")
    add("--batch", type=int, default=4 if on_cpu else 64)
    add("--steps", type=int, default=10 if on_cpu else 50)
    add("--interval", type=listed(float), default=[0.0, 0.7], help="LOW,HIGH of guidance")
    add("--attention", default="xla", help="xla or cudnn")
    add("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(describe_machine() + "\n")
    print(f"{options.model}, batch {options.batch}, {options.steps} steps\n")
    print_table(HEADER, lines(options))


def lines(options: argparse.Namespace) -> Iterator[list[str]]:
    """Three lines a solver."""
    low, high = options.interval
    guidances = {
        "none": Guidance(),
        f"{low:g} to {high:g}": Guidance(1.5, low, high),
        "everywhere": Guidance(1.5),
    }
    rows = jnp.arange(options.batch, dtype=jnp.uint32)
    for kind, solver in SOLVERS:
        trunk = DiT(transformer(options.model, kind, attention=options.attention))
        params = jax.jit(trunk.init)(jax.random.key(0))
        steps = make_steps(process(kind), solver, options.steps)

        def call(guidance, kind=kind, trunk=trunk, params=params, steps=steps):
            conditioning = trunk.config.conditioning
            sampler = make_sampler(trunk, process(kind), conditioning, steps, guidance)
            labels = rows.astype(jnp.int32)
            return lambda: sampler(params, jnp.uint32(0), rows, labels).block_until_ready()

        times = take_turns({name: call(each) for name, each in guidances.items()}, options.repeats)
        for name, guidance in guidances.items():
            whole, passes = spread(times[name]), count_passes(steps, guidance)
            over = f"{ratio(times[name], times['none']):.2f}"
            speeds = (f"{whole.over(options.batch):,.3g}", f"{whole.scaled(1e3 / passes):,.1f}")
            yield [solver, name, str(passes), *speeds, over]


def count_passes(steps: list[Step], guidance: Guidance) -> int:
    """Passes of one batch through the model."""
    return sum(
        (2 if step.rule is heun_step else 1) * (2 if guidance.active(step.time) else 1)
        for step in steps
    )


if __name__ == "__main__":
    main()
