"""Two processes measure a run as one does."""

import json

import pytest
from commands import devices, digits, finish, run, start_two

NUM = 150  # three chunks, of which the second process takes two


def test_two_processes_find_what_one_finds(tmp_path):
    workdir = tmp_path / "run"
    steps = {"train__steps": 2, "train__checkpoint_every": 2}
    assert run("train", digits(workdir, **steps), **devices(1)).code == 0
    flags = [f"--workdir={workdir}", f"--num={NUM}", "--reference=embedded:digits"]
    flags += ["--features=probe"]
    results = [finish(process) for process in start_two("evaluate", flags)]
    assert [result.code for result in results] == [0, 0], results
    alone = run("evaluate", flags, **devices(1))
    found, expected = (json.loads(result.out.splitlines()[-1]) for result in (results[0], alone))
    assert found.keys() == expected.keys() and found["images"] == NUM
    for name in list(expected)[3:]:  # after samples, reference and images
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name
    assert "{" not in results[1].out  # the first process reports
