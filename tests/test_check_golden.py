"""`python -m tests.check_golden`: it passes what is right, and names what is not."""

import re
import subprocess
import sys

import check_golden
import numpy as np
import pytest
from commands import REPOSITORY, environment
from golden import DATA
from golden_kinds import sit as sit_kind

SUMMARY = re.compile(r"compared (\d+) quantities, worst (\S+) of its tolerance \((\S+)\)")


@pytest.fixture
def only(monkeypatch):
    """Has files of SiT compared by one group alone, to save time."""

    def keep(group):
        monkeypatch.setattr(sit_kind, "GROUPS", {group: sit_kind.GROUPS[group]})

    return keep


@pytest.fixture
def changed(tmp_path):
    """From changes by key (None leaves it out) to a copy of SiT's file with them."""

    def copy(**changes):
        with np.load(DATA / "sit.npz", allow_pickle=False) as arrays:
            arrays = dict(arrays)
        for key, change in changes.items():
            array = arrays.pop(key)
            if change is not None:
                arrays[key] = change(array.copy())
        np.savez(tmp_path / "changed.npz", **arrays)
        return tmp_path / "changed.npz"

    return copy


@pytest.mark.parametrize(("kind", "count"), [("sit", 40), ("dit", 16), ("layersync", 31)])
def test_shipped_files_pass_in_full(kind, count, capsys):
    code = check_golden.main([str(DATA / f"{kind}.npz")])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")  # `err` would name keys that nothing has compared
    *lines, summary = out.splitlines()
    number, ratio, worst = SUMMARY.fullmatch(summary).groups()
    assert int(number) == len(lines) == count
    errors = {name: (float(e), float(tol)) for name, e, tol in map(str.split, lines)}
    assert len(errors) == count
    error, tolerance = errors[worst]
    assert float(ratio) == pytest.approx(error / tolerance, abs=0.01) and float(ratio) < 1


def scaled(factor):
    def change(array):
        array.flat[0] *= factor
        return array

    return change


@pytest.mark.parametrize(
    ("group", "key", "change", "named"),
    [
        ("forward", "student/blocks.2.mlp.fc2.bias", lambda a: a * 1.01, "fwd/block_03"),
        ("forward", "fwd/velocity", scaled(1.01), "fwd/velocity"),
        ("forward", "fwd/projected", scaled(np.nan), "fwd/projected"),
        ("forward", "fwd/block_02", lambda a: a[:, 1:], "fwd/block_02"),
        ("losses", "loss/cosine/lognormal/l2", lambda a: a * 1.0001, "loss/cosine/lognormal/l2"),
    ],
)
def test_what_is_wrong_is_named(only, changed, capsys, group, key, change, named):
    only(group)
    assert check_golden.main([str(changed(**{key: change}))]) == 1
    out, err = capsys.readouterr()
    (beyond,) = re.findall(r"beyond tolerance: (.*)", err)
    assert set(named.split()) <= set(beyond.split(", "))
    assert ("student" in key) or beyond == named
    _, ratio, worst = SUMMARY.fullmatch(out.splitlines()[-1]).groups()
    assert worst in beyond and not float(ratio) <= 1


def test_what_nothing_compares_is_told(only, capsys):
    only("forward")
    assert check_golden.main([str(DATA / "sit.npz")]) == 0
    assert "not compared: after/student/" in capsys.readouterr().err


def test_a_file_without_a_key_is_refused(only, changed, capsys):
    only("forward")
    assert check_golden.main([str(changed(**{"fwd/block_03": None}))]) == 2
    assert re.fullmatch(r"error: \S+changed.npz has no 'fwd/block_03'\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("nothing", "No such file"),
        ("text", "unreadable: File is not a zip file"),
        ("half", "unreadable"),
        ("objects", "unreadable: Object arrays cannot be loaded"),
        ("others", "unknown kind, expected one of sit, dit, layersync"),
    ],
)
def test_other_files_are_refused_in_one_line(content, words, tmp_path, capsys):
    file = tmp_path / "file.npz"
    if content == "text":
        file.write_text("not an archive")
    elif content == "half":
        file.write_bytes((DATA / "sit.npz").read_bytes()[:50_000])
    elif content == "objects":
        np.savez(file, **dict.fromkeys(sit_kind.KEYS, np.array([{}], object)))
    elif content == "others":
        np.savez(file, **{"fwd/velocity": np.ones(3), "meta": "{}"})
    assert check_golden.main([str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err


FROM_THE_ROOT = """
import runpy, sys
for name in ("clu", "grain", "ml_collections", "orbax", "safetensors", "scipy", "torch"):
    sys.modules[name] = None
runpy.run_module("tests.check_golden", run_name="__main__", alter_sys=True)
"""


def test_it_runs_as_a_module_with_few_packages():
    """As `python -m tests.check_golden` does; no test is on its path."""
    file = DATA / "crop.npz"
    result = subprocess.run(
        [sys.executable, "-c", FROM_THE_ROOT, file],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (2, "")
    known = ", ".join(check_golden.KINDS)
    assert result.stderr == f"error: {file} is of an unknown kind, expected one of {known}\n"
