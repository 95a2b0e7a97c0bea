"""`benchmarks/gpu.sh` in miniature, where only what a bare GPU machine has can be imported."""

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import gpu
import gpu_train
import jax
import pytest
from records import Clock, Record, read_calls, write_calls
from timing import Spread

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"
MISSING = ("array_record", "clu", "grain", "ml_collections", "orbax", "tensorflow_datasets")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """From names of packages to an environment in which they, too, cannot be imported."""

    def environment(*names):
        folder = tmp_path_factory.mktemp("missing")
        for name in (*MISSING, *names):
            folder.joinpath(f"{name}.py").write_text(f"raise ImportError('no {name} here')")
        return os.environ | {"PYTHONPATH": str(folder), "PYTHON": sys.executable}

    return environment


def run(environment, *flags):
    command = ["bash", SCRIPT, *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_parts_that_fail_say_so_and_the_next_one_starts(bare, tmp_path):
    result = run(bare("torch"), "--tiny", "--parts=peer,train", f"--out={tmp_path}")
    assert result.returncode == 1
    (call,) = json.loads((tmp_path / "gpu.json").read_text())["calls"]
    assert call["parts"]["train"]["outcome"] == "done"
    rows = call["parts"]["train"]["tables"]["steps"]
    assert [(row["method"], row["batch"]) for row in rows] == [
        ("sit+sra", 4),
        ("sit", 4),
    ]
    assert all(row["images_per_second"] > 0 for row in rows)
    (cost,) = call["parts"]["train"]["tables"]["cost of SRA"]
    assert cost["time_over_plain"] == pytest.approx(rows[0]["ms"] / rows[1]["ms"])
    assert call["parts"]["train"]["matmul_tflops"] > 0
    assert "no torch here" in call["parts"]["peer"]["outcome"]
    peers = call["parts"]["peer"]["tables"]["peers"]
    assert [row["contestant"] for row in peers] == ["ours"]  # which PyTorch's absence does not stop
    # The parts come in the script's order; the rows are printed too.
    assert result.stdout.index("## train") < result.stdout.index("## peer")
    assert "| tiny | sit+sra | 1 | 4 |" in result.stdout


@pytest.mark.slow
def test_everything_is_tried_on_a_cpu_within_two_minutes(bare, tmp_path):
    began = time.perf_counter()
    parts = ",".join(gpu.PARTS)
    result = run(bare(), "--tiny", f"--parts={parts}", f"--out={tmp_path}", "--minutes=4")
    assert result.returncode == 0, result.stdout + result.stderr
    (call,) = read_calls(tmp_path / "gpu.json")
    assert {name: part["outcome"] for name, part in call["parts"].items()} == dict.fromkeys(
        gpu.PARTS, "done"
    )
    assert time.perf_counter() - began < 120
    peers = call["parts"]["peer"]["tables"]["peers"]
    assert {row["contestant"] for row in peers} == {"ours", "blocks", "eager"}
    assert not any(row.get("refused") for row in peers)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--parts=trian"], "unknown 'trian', expected of check, train"),
        ([], "--out=FOLDER says where the numbers go"),
        (["--out="], "--out=FOLDER says where the numbers go"),
        (["--minutes=0"], "--minutes=0, expected a number above 0"),
        (["--peer=/nowhere"], "--peer=/nowhere has no SiT-SRA/train.py"),
    ],
)
def test_bad_flags_are_refused_in_one_line(bare, tmp_path, flags, message):
    out = [f"--out={tmp_path}"] if flags and flags != ["--out="] else []
    environment = {name: value for name, value in bare().items() if name != "OUT"}
    result = run(environment, *flags, *out)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]


def test_a_file_of_something_else_is_refused_and_kept(bare, tmp_path):
    tmp_path.joinpath("gpu.json").write_text("{}")
    result = run(bare(), "--tiny", "--parts=train", f"--out={tmp_path}")
    assert result.returncode == 2
    assert "gpu.json is not a record of calls; move it away" in result.stderr
    assert tmp_path.joinpath("gpu.json").read_text() == "{}"


def test_a_script_that_takes_too_long_is_killed_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "BENCHMARKS", tmp_path)
    child = tmp_path / "child"
    tmp_path.joinpath("slow.py").write_text(
        "import subprocess, time\n"
        "process = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(child)!r}, 'w').write(str(process.pid))\n"
        "time.sleep(60)\n"
    )
    assert gpu.run_script("slow.py", [], 2, dict(os.environ)) == gpu.LATE
    time.sleep(0.2)
    state = Path(f"/proc/{child.read_text()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


@pytest.mark.parametrize(
    ("source", "outcome"),
    [
        ("", gpu.DONE),
        ("raise SystemExit('error: too few\\nmore')", "script.py (1): error: too few"),
        ("e = ValueError('too few'); e.add_note('For you'); raise e", "(1): ValueError: too few"),
        ("import sys; sys.stderr.buffer.write(b'\\xff\\n'); sys.exit(3)", "(3): no reason given"),
        ("import os; os.kill(os.getpid(), 11)", "script.py: killed by SIGSEGV"),
    ],
)
def test_a_script_that_fails_is_told_with_its_reason(tmp_path, monkeypatch, source, outcome):
    monkeypatch.setattr(gpu, "BENCHMARKS", tmp_path)
    tmp_path.joinpath("script.py").write_text(source)
    assert gpu.run_script("script.py", [], 30, dict(os.environ)).endswith(outcome)


def test_a_call_without_time_has_failed_and_leaves_only_its_record(bare, tmp_path):
    result = run(bare() | {"OUT": str(tmp_path)}, "--tiny", "--parts=train", "--minutes=0.005")
    assert result.returncode == 1
    (call,) = read_calls(tmp_path / "gpu.json")
    assert call["parts"]["train"]["outcome"] == "failed: stopped at its time, with nothing measured"
    assert [file.name for file in tmp_path.iterdir()] == ["gpu.json"]


def test_a_second_call_at_once_is_refused(bare, tmp_path):
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    result = run(bare(), "--tiny", "--parts=train", f"--out={tmp_path}")
    os.close(folder)
    assert result.returncode == 2
    assert "another call is writing to" in result.stderr and not list(tmp_path.iterdir())


def test_rows_are_on_disk_as_soon_as_they_are_added(tmp_path, capsys):
    file = tmp_path / "gpu.json"
    write_calls(file, [{"parts": {"old": {}}}, {"parts": {}}])
    record = Record(file, "train")
    steps, costs = (record.table(name, ("model", "ms")) for name in ("steps", "costs"))
    for table, row in ((steps, {"ms": 1 / 3}), (costs, {"model": "B/2"}), (steps, {"ms": 12345.6})):
        table.add(**row)
        assert read_calls(file)[-1]["parts"]["train"]["tables"][table.name][-1] == row
    assert read_calls(file)[0] == {"parts": {"old": {}}}
    assert record.rows("steps", "train") == [{"ms": 1 / 3}, {"ms": 12345.6}]
    assert record.rows("steps", "peer") == []
    printed = capsys.readouterr().out
    assert printed.count("| model | ms |") == 3  # again after rows of another table
    assert "|  | 0.3333 |" in printed and "|  | 12,346 |" in printed
    steps.add(ms=float("nan"))
    assert json.loads(file.read_text(), parse_constant=pytest.fail)
    assert record.rows("steps", "train")[-1] == {"ms": "nan"}
    with pytest.raises(ValueError, match="table steps has no column seconds"):
        steps.add(seconds=1)


@pytest.fixture
def measured(monkeypatch):
    """From lines and a clock to the rows of a part `train`, and the batches that were tried.

    A GPU with room for a batch of 4 stands in for the real one, which the first test above times.
    """

    def measure(lines, clock):
        tried, rows, record = [], [], Record()

        def make_job(setting, method, side, options):
            tried.append(setting.batch)
            if setting.batch > 4:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nmore")
            return SimpleNamespace(flops=10**9, memory=2**30, compile_seconds=1.0)

        monkeypatch.setattr(gpu_train, "make_job", make_job)
        monkeypatch.setattr(gpu_train, "time_step", lambda job, timing: time.sleep(0.02) or STEP)
        monkeypatch.setattr(record, "write", lambda table, row: rows.append(row))
        gpu_train.measure(lines, True, 1e12, record, clock)
        return rows, tried

    return measure


STEP = Spread(0.1, 0.1, 0.2)


def test_what_does_not_fit_is_refused_once_and_not_tried_larger(measured):
    settings = [gpu_train.Setting("tiny", batch, "none", "xla", 1) for batch in (4, 8, 16)]
    rows, tried = measured([gpu_train.Line(each, gpu_train.PLAIN) for each in settings], Clock())
    assert tried == [4, 8]
    assert rows[0]["images_per_second"] == pytest.approx(40) and rows[0]["of_matmul"] == 0.01
    assert rows[1]["refused"] == "RESOURCE_EXHAUSTED: out of memory more"


def test_no_row_is_begun_that_would_not_be_done_in_time(measured, capsys):
    rows, _ = measured(gpu_train.lines(tiny=True), Clock(0.03))
    assert len(rows) == 1
    assert "the time is up; 1 rows were not begun" in capsys.readouterr().out


def test_the_headline_comes_first_and_every_setting_once():
    lines = gpu_train.lines(tiny=False)
    first = lines[0]
    assert (first.setting.model, first.method) == ("XL/2", gpu_train.SRA)
    assert len(set(lines)) == len(lines)
    settings = [line.setting for line in lines]
    assert {setting.batch for setting in settings} == {32, 64, 128, 256}
    assert {(s.attention, s.remat) for s in settings} == {
        (attention, remat) for attention in ("cudnn", "xla") for remat in ("none", "dots")
    }
