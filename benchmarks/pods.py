"""How SiT-XL/2 with SRA scales over TPU slices, on paper: no TPU is used, and none was compared.

  python benchmarks/pods.py

Some programs have been compiled for slices that were not there (`ANCHORS`, made with
`python -m sra_jax compile`). Between and beyond them a model speaks, whose first table says how
far it is from them. Takes seconds.

The model, for a device with x images of a step, of P parameters over f devices of `fsdp`:
  compute   operations of the step, recomputation included, at the chip's peak in bfloat16
  update    36 bytes P / f: the optimiser reads five float32 arrays and writes four
  memory    update; 4 bytes P for each of three uses of the parameters, of which the teacher's is of
            its blocks alone, and for the gradient; and x times what an image's activations take,
            which is not modelled but solved for in the family's anchor at that resolution
  network   parameters gathered in bfloat16, forward, for the teacher's blocks, backward, and half
            of them once more under full recomputation; gradients scattered, at twice the price over
            a whole slice, where XLA all-reduces them; in rings of f. Then gradients all-reduced in
            rings of the data axis. At all links' bandwidth one way
  HBM       16 bytes P / f of state, 4 of gradient, and x times the activations that are kept
The roofline is the largest of compute, memory and network. The step is estimated as what cannot
overlap, added up: the larger of compute at 60 % of the peak and memory without the update, then
the update, then the network.
"""

import argparse
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
from published_models import alignment, make_objective, train_flops, transformer
from timing import print_table

from sra_jax.distributed.hardware import CHIPS, GIB, Chip
from sra_jax.models import DiTConfig
from sra_jax.pods.forecast import EFFICIENCY, Roofline, make_roofline
from sra_jax.pods.slices import SLICES

MODEL, BATCH = "XL/2", 256
KINDS = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5p", "v6e": "TPU v6 lite"}
CHIP_COUNTS = (16, 32, 64, 128, 256, 512)
FSDP_SIZES = (1, 2, 4, 8, 16)  # of 32, slices of the width would fill a quarter of the TPU's tiles
UPDATE_BYTES, STATE_BYTES, GRADIENT_BYTES, USE_BYTES, WIRE_BYTES = 36, 16, 4, 4, 2


class Layout(NamedTuple):
    """A mesh and what is recomputed."""

    data: int
    fsdp: int
    remat: str


class Anchor(NamedTuple):
    """What the compiler said of batch 256: GiB at the peak; GB to and from memory, and sent."""

    family: str
    resolution: int
    layout: Layout
    hbm: float
    traffic: float
    sent: float


# The first of a family and resolution is the one that the model takes; the others are checks.
ANCHORS = (
    Anchor("v4", 256, Layout(16, 1, "full"), 13.08, 129.4, 2.56),
    Anchor("v5e", 256, Layout(2, 8, "dots"), 4.66, 38.27, 4.73),
    Anchor("v5e", 256, Layout(2, 8, "none"), 6.59, 46.07, 4.73),
    Anchor("v5e", 256, Layout(1, 16, "full"), 1.50, 27.5, 6.62),
    Anchor("v5e", 256, Layout(16, 1, "full"), 13.03, 57.7, 2.56),
    Anchor("v5e", 256, Layout(256, 1, "full"), 12.66, 42.8, 2.72),
    Anchor("v5p", 256, Layout(16, 1, "dots"), 15.32, 93.55, 2.56),
    Anchor("v5p", 256, Layout(16, 1, "none"), 17.30, 104.5, 2.56),
    Anchor("v6e", 256, Layout(4, 4, "full"), 4.12, 50.4, 5.01),
    Anchor("v4", 512, Layout(16, 1, "full"), 15.58, 562.4, 2.56),
    Anchor("v5e", 512, Layout(1, 16, "full"), 3.94, 443.9, 6.62),
    Anchor("v5p", 512, Layout(16, 1, "full"), 15.59, 482.5, 2.56),
    Anchor("v6e", 512, Layout(4, 4, "full"), 6.48, 453.7, 5.01),
)


class Work(NamedTuple):
    """A model's step, for one device: parameters, the share of the blocks that the teacher runs,
    operations an image, and bytes of activations an image: kept, and to and from memory."""

    parameters: int
    teacher_share: float
    flops: float
    kept: float
    moved: float


class Forecast(NamedTuple):
    """Of one device: bytes at the peak, bytes sent, the roofline and the step in seconds."""

    hbm: float
    sent: float
    roofline: Roofline
    seconds: float


def main() -> None:
    """Prints the tables."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    print("The model beside the compiler, batch 256:\n")
    header = ("family", "pixels", "layout", "GiB", "model", "GB sent", "model", "GB an image")
    print_table(header, anchor_lines())
    for resolution in (256, 512):
        print(f"{MODEL} at {resolution} pixels, batch 256 or an image a chip, best layout:\n")
        header = ("slice", "chips", "layout", "GiB", "of", "GB sent", "roofline ms (bound by)")
        header += ("images/s", "by data parallelism", "compute-bound from batch")
        print_table(header, slice_lines(resolution))


def anchor_lines() -> Iterator[list[str]]:
    """How far the model is from what was compiled."""
    for anchor in ANCHORS:
        chip = CHIPS[KINDS[anchor.family]]
        layout, work = anchor.layout, work_of(anchor)
        found = forecast(chip, work, layout, BATCH / (layout.data * layout.fsdp))
        yield [
            anchor.family,
            str(anchor.resolution),
            say(layout),
            f"{anchor.hbm:.2f}",
            f"{found.hbm / GIB:.2f}",
            f"{anchor.sent:.2f}",
            f"{found.sent / 1e9:.2f}",
            f"{work.moved / 1e9:.2f}",
        ]


def slice_lines(resolution: int) -> Iterator[list[str]]:
    """One line for each slice of each family."""
    for family, kind in KINDS.items():
        anchor = next(a for a in ANCHORS if (a.family, a.resolution) == (family, resolution))
        chip, work = CHIPS[kind], work_of(anchor)
        for name in SLICES[family]:
            count = math.prod(map(int, name.split("x")))
            if count not in CHIP_COUNTS:
                continue
            images = max(BATCH / count, 1)
            found = {
                layout: forecast(chip, work, layout, images)
                for layout in layouts(count, anchor.layout.remat)
            }
            best = min(found, key=lambda layout: rank(found[layout], chip))
            alone = found[Layout(count, 1, anchor.layout.remat)]
            total = images * count
            best_found = found[best]
            yield [
                f"{family}:{name}",
                str(count),
                say(best),
                f"{best_found.hbm / GIB:.1f}",
                f"{chip.memory / GIB:.1f}",
                f"{best_found.sent / 1e9:.2f}",
                f"{1e3 * best_found.roofline.seconds:.1f} ({best_found.roofline.bound})",
                f"{total / best_found.seconds:,.0f}",
                f"{total / alone.seconds:,.0f}" if alone.hbm <= chip.memory else "does not fit",
                compute_bound_from(chip, work, best, count),
            ]


def layouts(count: int, remat: str) -> list[Layout]:
    """Splits of the devices between the two axes."""
    sizes = [size for size in FSDP_SIZES if size <= count]
    return [Layout(count // size, size, remat) for size in sizes]


def forecast(chip: Chip, work: Work, layout: Layout, images: float) -> Forecast:
    """The model in the docstring of this file, for `images` a device."""
    own = work.parameters / layout.fsdp
    update = UPDATE_BYTES * own
    uses = 2 + work.teacher_share + 1  # forward, teacher, backward, and the gradient
    rest = USE_BYTES * uses * work.parameters + work.moved * images
    sent = network(work, layout)
    roofline = make_roofline(chip, work.flops * images, update + rest, sent)
    layers = max(roofline.compute / EFFICIENCY[1], rest / chip.bandwidth)
    seconds = layers + update / chip.bandwidth + roofline.interconnect
    hbm = (STATE_BYTES + GRADIENT_BYTES) * own + work.kept * images
    return Forecast(hbm, sent, roofline, seconds)


def network(work: Work, layout: Layout) -> float:
    """Bytes that a device sends in a step."""
    whole = WIRE_BYTES * work.parameters
    ring = (layout.fsdp - 1) / layout.fsdp
    gathers = 2 + work.teacher_share + (0.5 if layout.remat == "full" else 0)
    scatters = 2 if layout.data == 1 else 1
    gathers_and_scatter = (gathers + scatters) * whole * ring
    all_reduce = 2 * (layout.data - 1) / layout.data * whole / layout.fsdp
    return gathers_and_scatter + all_reduce


def rank(found: Forecast, chip: Chip) -> tuple[bool, float]:
    return found.hbm > chip.memory, found.seconds


def compute_bound_from(chip: Chip, work: Work, layout: Layout, count: int) -> str:
    """The global batch from which the roofline is bound by compute; or what bounds it forever."""
    if work.moved / chip.bandwidth >= work.flops / chip.flops:
        return "never: memory"
    images = 1
    while forecast(chip, work, layout, images).roofline.bound != "compute":
        images += 1
    return f"{images * count:,}"


def work_of(anchor: Anchor) -> Work:
    """The step that an anchor compiled, whose activations' traffic is the anchor's rest."""
    config = transformer(MODEL, "sit", anchor.resolution // 8, remat=anchor.layout.remat)
    sra = alignment(MODEL, "sit")
    shapes = jax.eval_shape(lambda: make_objective(config, sra).init(0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    work = Work(
        parameters,
        sra.teacher_block / config.depth,
        train_flops(config, sra).total,
        kept_bytes(config),
        0.0,
    )
    chip, devices = CHIPS[KINDS[anchor.family]], anchor.layout.data * anchor.layout.fsdp
    images = BATCH / devices
    fixed = forecast(chip, work, anchor.layout, images).roofline.memory * chip.bandwidth
    return work._replace(moved=(1e9 * anchor.traffic - fixed) / images)


def kept_bytes(config: DiTConfig) -> float:
    """Activations of an image that wait for the backward pass, in bfloat16: each block's input;
    with "dots" its linear products too; with "none" also scores, in float32, and weighted values.
    Beside them one block's scores twice, while they are worked on."""
    tokens, width = config.layout.tokens, config.width
    values = {"full": 1, "dots": 10, "none": 11}[config.remat] * 2 * tokens * width
    scores = 4 * config.num_heads * tokens**2
    held = config.depth if config.remat == "none" else 2
    return config.depth * values + held * scores


def say(layout: Layout) -> str:
    return f"data {layout.data} x fsdp {layout.fsdp}, {layout.remat}"


if __name__ == "__main__":
    main()
