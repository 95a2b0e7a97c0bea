"""One round of `benchmarks/faults.py`; a handful of kills is in every run of `test_resume.py`."""

import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faults.py"


@pytest.mark.slow
def test_a_round_of_faults_loses_nothing():
    result = subprocess.run(
        [sys.executable, SCRIPT, "--rounds=1", "--seed=7"],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "results that differ: 0" in result.stdout.splitlines()[-1]
