"""What a run's checkpoints were found to be worth: WORKDIR/evaluation.jsonl, one line each."""

import json
import logging
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from sra_jax.core.files import atomic_write
from sra_jax.evaluation.judge import label

FILE = "evaluation.jsonl"
RANKED_BY = ("fid", "probe_fid")
# Records that are alike in these can be compared with each other.
SETTING = ("features", "reference", "images")

Record = dict[str, Any]

_log = logging.getLogger(__name__)


def record(
    workdir: epath.Path, step: int, setting: Record, numbers: Mapping[str, float], writer: Any
) -> None:
    """Keeps the numbers of `step`, found in this `setting`; logs them, also to `writer` (clu's).

    In a run of several processes the first one does.
    """
    if jax.process_index() > 0:
        return
    path = workdir / FILE
    lines = path.read_text().splitlines() if path.exists() else []
    lines.append(json.dumps({"step": step, **setting, **numbers}))
    with atomic_write(path) as scratch:  # object stores cannot append
        scratch.write_text("\n".join(lines) + "\n")
    writer.write_scalars(step, numbers)
    writer.flush()
    said = "  ".join(f"{label(name)} {number:.4f}" for name, number in numbers.items())
    _log.info("step %s: %s  (the best is step %s)", f"{step:,}", said, best_step(workdir))


def read(workdir: epath.Path) -> list[Record]:
    """All records, the oldest first; lines that are none are passed over."""
    path = workdir / FILE
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("step"), int):
            records.append(found)
    return records


def alike(a: Record, b: Record) -> bool:
    """Whether two records were measured in the same setting."""
    return all(a.get(name) == b.get(name) for name in SETTING)


def best_step(workdir: epath.Path) -> int | None:
    """The step of the lowest FID, among the records measured as the last one was."""
    ranked = [(found, name) for found in read(workdir) for name in RANKED_BY if name in found]
    if not ranked:
        return None
    last, name = ranked[-1]
    rivals = [found for found, other in ranked if other == name and alike(found, last)]
    return min(rivals, key=lambda found: found[name])["step"]
