"""Two processes measure a run as one does."""

import json

import pytest
from commands import devices, finish, run, start_two

NUM = 150  # three chunks, of which the second process takes two
HURRY = """
from sra_jax.evaluation import classifier
classifier.STEPS, classifier.EPOCHS = 20, 0
"""


def test_two_processes_find_what_one_finds(finished):
    flags = [f"--workdir={finished}", f"--num={NUM}", "--reference=embedded:digits"]
    results = [finish(process) for process in start_two("evaluate", flags, before=HURRY)]
    assert [result.code for result in results] == [0, 0], results
    alone = run("evaluate", flags, before=HURRY, **devices(1))
    found, expected = (json.loads(result.out.splitlines()[-1]) for result in (results[0], alone))
    assert found.keys() == expected.keys() and found["images"] == NUM
    for name in list(expected)[3:]:  # after samples, reference and images
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name
    assert "{" not in results[1].out  # the first process reports
