"""Probes the blocks of a run's model: writes a report, figures, and a cache of features."""

import dataclasses
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from sra_jax.checkpoints.fingerprint import fingerprint
from sra_jax.checkpoints.store import CheckpointStore
from sra_jax.config.schema import Experiment
from sra_jax.core.errors import InputError, expect_one_of
from sra_jax.core.files import atomic_write, locked, writable_directory
from sra_jax.data.embedded import EMBEDDED, ensure_embedded
from sra_jax.data.loading import digest
from sra_jax.data.records import LatentSource
from sra_jax.distributed.mesh import MeshConfig, make_mesh
from sra_jax.jobs.requests import ProbeRequest
from sra_jax.probing.alignment import alignment
from sra_jax.probing.cache import FeatureCache, keeping_features
from sra_jax.probing.features import FeatureExtractor, Selection, place_params
from sra_jax.probing.linear import PROTOCOLS, choose_protocol
from sra_jax.probing.pca import pca_maps
from sra_jax.probing.split import open_fitting, train_test_split
from sra_jax.probing.survey import Split, Survey, fill
from sra_jax.run import directory as workdirs

FORMAT_VERSION = 1
FEATURES_VERSION = 1  # of how features are computed; cached ones of other versions are not used
REPORT_FILE = "probe.json"
PCA_IMAGES, MAX_PCA_IMAGES = 3, 16
WEIGHTS_IN_TITLES = {"ema": "EMA", "student": "student"}
ALIGNED_IMAGES = 256  # at most; their student's and teacher's features are compared

_log = logging.getLogger(__name__)


class _Plan(NamedTuple):
    """A validated request: everything that is the same for all checkpoints."""

    request: ProbeRequest
    blocks: tuple[int, ...]
    times: tuple[float, ...]
    train: Selection
    test: Selection
    protocol: str
    features: Path
    mesh: jax.sharding.Mesh
    sra: Mapping[str, Any]  # its config fields, if the run trains with it


def probe(request: ProbeRequest) -> dict[str, Any]:
    """Probes one or more checkpoints of a run; writes `probe.json` and figures.

    Returns:
      The content of `probe.json`.

    Raises:
      InputError: the request, the workdir or the data is wrong.
      RunError: the features are not finite, or the disk is full or fails.
    """
    workdir = workdirs.open_directory(request.workdir)
    saved = workdirs.read(workdir)
    experiment = Experiment.from_dict(saved.config, with_methods=False)
    blocks = parse_blocks(request.blocks, experiment.model.depth)
    times = parse_times(request.times)
    _check(request)
    steps = _choose_steps(request, workdir)
    with CheckpointStore(workdir) as store:
        for step in steps:
            workdirs.expect_weights(store, request.weights, step)
    out = writable_directory(os.fspath(workdir / "probe") if request.out is None else request.out)
    with locked(out):
        train, test = _open_data(request, saved, out)
        protocol = choose_protocol(request.protocol, len(train.numbers))
        pca_images = _choose_images(request.images, test)
        mesh = make_mesh(MeshConfig(), jax.local_devices())
        sra = saved.config["method"].get("sra", {})
        features = out / "features"
        plan = _Plan(request, blocks, times, train, test, protocol, features, mesh, sra)
        counts = [f"{len(images.numbers):,}" for images in (train, test)]
        _log.info("images   %s for training, %s for testing; %s protocol", *counts, protocol)
        _log.info("accuracy of the majority class: %.1f %%", 100 * _majority(test))
        reports = []
        for step in steps:
            trained = workdirs.load_model(request.workdir, request.weights, step)
            reports.append(_probe_checkpoint(plan, trained))
        report = _summarise(plan, experiment, reports)
        with keeping_features(out):
            report["pictures"] = _draw(plan, report, trained, pca_images, out)
            with atomic_write(out / REPORT_FILE) as scratch:
                scratch.write_text(json.dumps(report, indent=2) + "\n")
    for name in (REPORT_FILE, *report["pictures"]):
        _log.info("written: %s", out / name)
    return report


def parse_blocks(text: str, depth: int) -> tuple[int, ...]:
    """Parses "all" or "1,8" to increasing blocks. Raises InputError for an unknown block."""
    if text == "all":
        return tuple(range(1, depth + 1))
    blocks = _parse_list("blocks", text, int, "all or a list like 1,8")
    for block in blocks:
        if not 1 <= block <= depth:
            raise InputError(f"no block {block}, expected 1 to {depth}")
    return tuple(sorted(set(blocks)))


def parse_times(text: str) -> tuple[float, ...]:
    """Parses "0.1,0.5" to increasing times. Raises InputError for a time outside of [0, 1]."""
    times = _parse_list("times", text, float, "a list like 0.1,0.5")
    for time in times:
        if not 0 <= time <= 1:
            raise InputError(f"time {time} is out of range, expected 0 (data) to 1 (noise)")
    return tuple(sorted(set(times)))


def _parse_list(name: str, text: str, kind: type, expected: str) -> list:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{name} is {text!r}, expected {expected}") from None


def _check(request: ProbeRequest) -> None:
    choose_protocol(request.protocol, 0)
    if request.num < 0:
        raise InputError(f"num is {request.num}, expected at least 0 (0 is all images)")
    if not 0 <= request.seed < 2**32:
        raise InputError(f"seed is {request.seed}, expected in [0, 2**32)")
    for path in (request.data, request.test_data):
        if path is not None and path.startswith("embedded:"):
            expect_one_of("embedded set", path, EMBEDDED)


def _choose_steps(request: ProbeRequest, workdir: epath.Path) -> list[int | None]:
    """Returns the steps of the checkpoints to probe; None is the newest undamaged one."""
    saved = CheckpointStore(workdir).steps()
    if request.checkpoints is not None and request.every is not None:
        raise InputError("--checkpoints and --every exclude each other; give one of them")
    if request.checkpoints is not None:
        steps = _parse_list("checkpoints", request.checkpoints, int, "a list like 1000,2000")
        if absent := [step for step in sorted(steps) if step not in saved]:
            raise InputError(f"no step {absent[0]} in {workdir}, expected some of {saved}")
        return sorted(set(steps))
    if request.every is None:
        return [None]
    if request.every < 1:
        raise InputError(f"every is {request.every}, expected at least 1")
    steps = [step for step in saved if step % request.every == 0]
    if not steps:
        raise InputError(
            f"no step in {workdir} is a multiple of {request.every}, there are {saved}; train with "
            "--config.train.keep_every to keep more of them"
        )
    return steps


def _open_data(
    request: ProbeRequest, saved: workdirs.SavedRun, out: Path
) -> tuple[Selection, Selection]:
    """Returns the training and the test images."""

    def open_set(path: str) -> LatentSource:
        return open_fitting(ensure_embedded(path, out) if path in EMBEDDED else path, saved.data)

    data = saved.config["data"]["path"] if request.data is None else request.data
    if request.data is None and data not in EMBEDDED and not Path(data).is_dir():
        raise InputError(
            f"the data of the run, {data or 'unknown'}, are not here; give --data=DIR, latents of "
            "the same kind"
        )
    test_data = None if request.test_data is None else open_set(request.test_data)
    return train_test_split(open_set(data), test_data, request.num, request.seed)


def _choose_images(text: str | None, test: Selection) -> np.ndarray:
    """Returns the numbers [I] of the images in the PCA figure."""
    if text is None:
        _, firsts = np.unique(test.labels, return_index=True)
        return test.numbers[firsts[:PCA_IMAGES]]
    numbers = _parse_list("images", text, int, "a list of numbers like 0,7")
    for number in numbers:
        if not 0 <= number < len(test.source):
            raise InputError(f"no image {number}, expected 0 to {len(test.source) - 1}")
    if len(numbers) > MAX_PCA_IMAGES:
        raise InputError(f"{len(numbers)} images to draw, expected at most {MAX_PCA_IMAGES}")
    return np.array(numbers, np.int32)


def _extractor(plan: _Plan, trained: workdirs.TrainedModel) -> FeatureExtractor:
    run, data = trained.experiment, trained.data
    return FeatureExtractor(
        trained.trunk, run.process, run.conditioning, data.scale, data.shift, plan.request.seed
    )


def _probe_checkpoint(plan: _Plan, trained: workdirs.TrainedModel) -> dict[str, Any]:
    """Probes one checkpoint; returns its entry in the report."""
    _log.info("probing the %s weights of step %s", plan.request.weights, f"{trained.step:,}")
    extractor, config = _extractor(plan, trained), trained.trunk.config
    identity = {
        "format": FEATURES_VERSION,
        "weights": digest(json.dumps(fingerprint(trained.params)).encode()),
        "model": dataclasses.asdict(config),
        "process": repr(extractor.process),
        **{name: getattr(extractor, name) for name in ("scale", "shift", "seed")},
        "platform": jax.default_backend(),
    }
    splits = []
    for side, images in (("train", plan.train), ("test", plan.test)):
        name = f"step{trained.step}-{plan.request.weights}-{side}"
        shape = len(images.numbers), config.width
        cache = FeatureCache(plan.features, name, identity | {"images": images.digest}, shape)
        splits.append(Split(images, cache))
    params = place_params(trained.params, trained.trunk, plan.mesh)
    fill(splits, extractor, params, plan.blocks, plan.times, plan.mesh)
    protocol, seed = PROTOCOLS[plan.protocol], plan.request.seed
    classes = trained.data.num_classes
    survey = Survey(*splits, classes, protocol, seed, jax.local_devices())
    cells = survey.run(plan.blocks, plan.times)
    for time in plan.times:
        row = "  ".join(f"{100 * cell.top1:5.1f}" for cell in cells if cell.time == time)
        _log.info("t = %-5s top-1 accuracy by block, %%: %s", time, row)
    return {
        "step": trained.step,
        "cells": [cell._asdict() for cell in cells],
        "alignment": _align(plan, trained),
    }


def _align(plan: _Plan, trained: workdirs.TrainedModel) -> list[dict[str, float]] | None:
    """Returns the alignment of student and teacher at each time; None without SRA."""
    request = plan.request
    sra = workdirs.load_method(request.workdir, "sra", "student", trained.step)
    with CheckpointStore(request.workdir) as store:
        if sra is None or not store.names(trained.step) >= set(workdirs.TREES.values()):
            return None
    method, head = sra
    params = {request.weights: trained.params}
    for weights in workdirs.TREES.keys() - params.keys():
        params[weights] = workdirs.load_model(request.workdir, weights, trained.step).params
    extractor, numbers = _extractor(plan, trained), plan.test.numbers
    numbers = numbers[:: math.ceil(len(numbers) / ALIGNED_IMAGES)]
    moments = plan.test.source.read(numbers.tolist())["moments"]
    cosines = [
        alignment(extractor, method, params["student"], params["ema"], head, moments, numbers, time)
        for time in plan.times
    ]
    return [{"time": t, "cosine": cosine} for t, cosine in zip(plan.times, cosines, strict=True)]


def _summarise(plan: _Plan, experiment: Experiment, reports: list[dict]) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "workdir": plan.request.workdir,
        "weights": plan.request.weights,
        "data": plan.request.data or experiment.data.path,
        "test_data": plan.request.test_data,
        "train_images": len(plan.train.numbers),
        "test_images": len(plan.test.numbers),
        "protocol": plan.protocol,
        "seed": plan.request.seed,
        "blocks": list(plan.blocks),
        "times": list(plan.times),
        "student_block": plan.sra.get("student_block"),
        "teacher_block": plan.sra.get("teacher_block"),
        "chance": _majority(plan.test),
        "checkpoints": reports,
    }


def _majority(test: Selection) -> float:
    """Returns the share of the most frequent class."""
    return float(np.bincount(test.labels).max() / len(test.labels))


def _draw(
    plan: _Plan, report: dict, trained: workdirs.TrainedModel, pca_images: np.ndarray, out: Path
) -> list[str]:
    """Draws the last checkpoint, and the course of several; returns the names of the files."""
    from sra_jax.probing import plots  # matplotlib takes a second to import

    grid = plots.Grid(plan.blocks, plan.times, report["student_block"], report["teacher_block"])
    accuracy = np.array([[cell["top1"] for cell in one["cells"]] for one in report["checkpoints"]])
    accuracy = accuracy.reshape(-1, len(plan.times), len(plan.blocks))
    name, majority = Path(plan.request.workdir).resolve().name, report["chance"]
    weights = WEIGHTS_IN_TITLES[plan.request.weights]
    title = f"{name}, {weights} weights of step {trained.step:,}"
    figures = {
        "heatmap.png": plots.draw_heatmap(accuracy[-1], grid, f"Linear probe of {title}"),
        "depth.png": plots.draw_depth(accuracy[-1], grid, majority, f"Linear probe of {title}"),
        "pca.png": plots.draw_pca(*_map(plan, trained, pca_images), grid, f"PCA maps of {title}"),
    }
    if len(accuracy) > 1:
        steps = [one["step"] for one in report["checkpoints"]]
        figures["checkpoints.png"] = plots.draw_checkpoints(
            accuracy, steps, grid, majority, f"Linear probe of {name}, {weights} weights"
        )
    for file, figure in figures.items():
        plots.save(figure, out / file)
    return list(figures)


def _map(
    plan: _Plan, trained: workdirs.TrainedModel, numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Computes the PCA maps of some images.

    Returns:
      The maps [T, K, I, g, g, 3]; the model's inputs [T, I, H, W, C], scaled from [-1, 1] to [0, 1]
      like pixels; and the names of the images.
    """
    records, extractor = plan.test.source.read(numbers.tolist()), _extractor(plan, trained)
    moments, maps, inputs = records["moments"], [], []
    for time in plan.times:
        t = extractor.process.model_time(time)
        seen = extractor.patch_features(trained.params, moments, numbers, t, plan.blocks)
        maps.append([pca_maps(one) for one in np.asarray(seen.features, np.float32)])
        inputs.append(np.clip(np.asarray(seen.inputs) / 2 + 0.5, 0, 1))
    names = [f"image {n}, class {y}" for n, y in zip(numbers, records["labels"], strict=True)]
    return np.array(maps), np.array(inputs), names
