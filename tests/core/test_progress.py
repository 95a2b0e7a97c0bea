"""What is told of progress, by a clock of our own."""

import logging

from sra_jax.core import progress


def test_rate_and_forecast_leave_out_the_start(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    clock = iter([100.0, 104.0, 110.0, 111.0, 120.0])  # the first after a long compile
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    told = progress.Progress("features", 2000, "images")
    for done in (100, 300, 600, 650, 1100):
        told.reached(done)
    assert caplog.messages == [
        "features: 600/2,000 images  50.0 images/s  28s left",
        "features: 1,100/2,000 images  50.0 images/s  18s left",
    ]


def test_standing_still_has_no_forecast(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    clock = iter([0.0, 10.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    told = progress.Progress("classifiers", 8, "cells")
    told.reached(0), told.reached(0)
    assert caplog.messages == ["classifiers: 0/8 cells  0.0 cells/s  ? left"]
