"""Tables and curves of the results of benchmarks/learning.py."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

TITLES = {
    "sit": "SiT",
    "paper": "SiT + SRA",
    "same_block": "the same block",
    "no_gap": "no gap",
    "no_head": "no head",
    "weight_0.1": "weight 0.1",
    "weight_0.3": "weight 0.3",
    "weight_0.4": "weight 0.4",
    "fraction_0.5": "half the batch aligned",
    "decay": "decaying weight",
}
Runs = dict[str, dict[int, Any]]  # by variant, by seed


def report(name: str, out: Path) -> None:
    """Prints the tables of the runs on data set `name` in `out`, and draws learning_NAME.png."""
    runs = read_runs(name, out)
    if not runs:
        print(f"{name}: no runs in {out}")
        return
    facts = json.loads((out / f"{name}.json").read_text())
    steps = common_steps(runs)
    print(
        f"\n{name}: a step takes {facts['sit_ms']:.1f} ms, with alignment {facts['paper_ms']:.1f} "
        f"({facts['time_ratio']:.2f} times); real images: Fréchet distance {facts['floor']:.3f}, "
        f"{facts['accuracy']:.1%} known\n"
    )
    print(quality_table(runs, steps), probe_table(runs, steps), sep="\n\n")
    picture = out / f"learning_{name}.png"
    try:
        draw_curves(picture, name, runs, steps, facts)
    except ImportError:
        print("\nno curves: they need matplotlib")
    else:
        print(f"\ncurves: {picture}")


def read_runs(name: str, out: Path) -> Runs:
    """The results in `out`, variants in the order of `TITLES`."""
    runs = {}
    for variant in TITLES:
        for path in sorted(out.glob(f"{name}-{variant}-[0-9]*.json")):
            seed = int(path.stem.rpartition("-")[2])
            runs.setdefault(variant, {})[seed] = json.loads(path.read_text())
    return runs


def common_steps(runs: Runs) -> int:
    """Steps that all variants have made. Plain SiT makes more."""
    return min(run["points"][-1]["step"] for seeds in runs.values() for run in seeds.values())


def compare_pairs(runs: Runs) -> Iterator[dict[str, Any]]:
    """SiT + SRA minus SiT of the same seed, at equal steps and at equal time.

    Yields a row for each measure: its mean, least and most over the seeds that have both runs.
    """
    both = [runs.get(variant, {}) for variant in ("sit", "paper")]
    seeds = sorted(both[0].keys() & both[1].keys())
    if not seeds:
        return
    steps = common_steps({"sit": both[0], "paper": both[1]})
    ends = {seed: (steps, both[0][seed]["points"][-1]["step"]) for seed in seeds}
    for number, compared in enumerate(("equal steps", "equal time")):
        pairs = [
            (_measures(both[1][seed], steps), _measures(both[0][seed], ends[seed][number]))
            for seed in seeds
        ]
        for measure in pairs[0][0]:
            found = [paper[measure] - sit[measure] for paper, sit in pairs]
            yield {
                "compared": compared,
                "measure": measure,
                "mean": float(np.mean(found)),
                "least": min(found),
                "most": max(found),
                "seeds": len(found),
            }


def ends_of(run: dict[str, Any]) -> dict[int, dict[str, float]]:
    """Measurements of a run after the common steps and, for plain SiT, also after its last step."""
    return {int(end): _measures(run, int(end)) for end in run["probe"]}


def _measures(run: dict[str, Any], end: int) -> dict[str, float]:
    """The measurements after step `end`, by name."""
    (point,) = (point for point in run["points"] if point["step"] == end)
    blocks = run["probe"][str(end)]
    measures = {name: point[name] for name in ("frechet", "agreement", "loss")}
    return measures | {"probe_first": blocks[0], "probe_best": max(blocks)}


def quality_table(runs: Runs, steps: int) -> str:
    """Fréchet distance and class agreement at equal steps, and of SiT at equal time."""
    lines = [
        "| | steps | seeds | Fréchet distance | each seed | class agreement | loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant, seeds in runs.items():
        ends = {steps, *(run["points"][-1]["step"] for run in seeds.values())}
        for end in sorted(ends):
            points = [point for run in seeds.values() for point in run["points"]]
            points = [point for point in points if point["step"] == end]
            distances = [point["frechet"] for point in points]
            cells = (
                TITLES[variant] + (", for the same time" if end > steps else ""),
                f"{end:,}",
                str(len(points)),
                f"{np.mean(distances):.3f}",
                ", ".join(f"{distance:.3f}" for distance in distances),
                spread([100 * point["agreement"] for point in points], ".1f") + " %",
                f"{np.mean([point['loss'] for point in points]):.4f}",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def probe_table(runs: Runs, steps: int) -> str:
    """Accuracy of the probes by block, at equal steps and, of SiT, at equal time."""
    depth = len(next(iter(next(iter(runs.values())).values()))["probe"][str(steps)])
    lines = [
        "| probe accuracy, % | steps | "
        + " | ".join(f"block {k + 1}" for k in range(depth))
        + " |",
        "|---" * (depth + 2) + "|",
    ]
    for variant, seeds in runs.items():
        for end in sorted({int(end) for run in seeds.values() for end in run["probe"]}):
            found = [run["probe"][str(end)] for run in seeds.values() if str(end) in run["probe"]]
            blocks = [spread(block, ".1f") for block in 100 * np.array(found).T]
            lines.append(f"| {TITLES[variant]} | {end:,} | " + " | ".join(blocks) + " |")
    return "\n".join(lines)


def spread(values: list[float], spec: str) -> str:
    """ "mean (least to most)"."""
    return f"{np.mean(values):{spec}} ({min(values):{spec}} to {max(values):{spec}})"


def draw_curves(path: Path, name: str, runs: Runs, steps: int, facts: dict[str, float]) -> None:
    """Fréchet distance by step and by time, and probes by block; bands from least to most."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (by_step, by_time, by_block) = plt.subplots(1, 3, figsize=(15, 4.5))
    for variant, seeds in runs.items():
        main = variant in ("sit", "paper")
        style = {
            "label": TITLES[variant],
            "linewidth": 2 if main else 1,
            "alpha": 1 if main else 0.6,
        }
        step_ms = facts["sit_ms" if variant == "sit" else "paper_ms"]
        at = [point["step"] for point in next(iter(seeds.values()))["points"]]
        distances = np.array([[p["frechet"] for p in run["points"]] for run in seeds.values()])
        probes = 100 * np.array([run["probe"][str(steps)] for run in seeds.values()])
        seconds = np.array(at) * step_ms / 1e3
        blocks = np.arange(1, probes.shape[1] + 1)
        for axes, x, y in (
            (by_step, at, distances),
            (by_time, seconds, distances),
            (by_block, blocks, probes),
        ):
            (line,) = axes.plot(x, y.mean(0), marker=".", **style)
            if main:
                axes.fill_between(x, y.min(0), y.max(0), color=line.get_color(), alpha=0.2)
    for axes, label in ((by_step, "steps"), (by_time, "seconds of training")):
        axes.set(xlabel=label, ylabel="Fréchet distance, classifier's features", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    by_block.set(xticks=blocks, xlabel="block", ylabel=f"probe accuracy at step {steps:,}, %")
    by_step.legend(fontsize=8)
    figure.suptitle(
        f"{name}: mean of {max(map(len, runs.values()))} seeds, band from least to most; "
        f"real images are at a distance of {facts['floor']:.3g}"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
