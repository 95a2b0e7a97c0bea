"""The evaluation history of a run: WORKDIR/evaluation.jsonl, one line of JSON a measurement."""

import json
import logging
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from sra_jax.core.files import atomic_write
from sra_jax.evaluation.names import current_record, label

FILE = "evaluation.jsonl"
RANKED_BY = ("fid", "classifier_fid")
# Records with the same values of these fields can be compared with each other.
SETTING = ("features", "reference", "images")

Record = dict[str, Any]

_log = logging.getLogger(__name__)


def record(
    workdir: epath.Path, step: int, setting: Record, numbers: Mapping[str, float], writer: Any
) -> None:
    """Appends the numbers of `step`, measured in this `setting`, and logs them, also to `writer`
    (clu's interface). Only the first process of a run does anything.
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
    """All records, the oldest first. Skips damaged lines; names of version 0.1 become today's."""
    path = workdir / FILE
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("step"), int):
            records.append(current_record(found))
    return records


def alike(a: Record, b: Record) -> bool:
    """Whether two records were measured in the same setting."""
    return all(a.get(name) == b.get(name) for name in SETTING)


def best_step(workdir: epath.Path) -> int | None:
    """The step of the lowest FID among the records in the setting of the last one, if any."""
    ranked = [(found, name) for found in read(workdir) for name in RANKED_BY if name in found]
    if not ranked:
        return None
    last, name = ranked[-1]
    rivals = [found for found, other in ranked if other == name and alike(found, last)]
    return min(rivals, key=lambda found: found[name])["step"]
