"""The check of an accelerator at its smallest, on a CPU."""

import json

import gpu_check
import pytest


@pytest.fixture
def run(tmp_path, capsys):
    """Runs it; returns what it ends with, the part that it recorded, and what it printed."""

    def call(*flags):
        file = tmp_path / "gpu.json"
        file.write_text('{"calls": [{"parts": {}}]}')
        told = gpu_check.main([f"--record={file}", "--part=check", "--tiny", *flags])
        return (
            told,
            json.loads(file.read_text())["calls"][-1]["parts"]["check"],
            capsys.readouterr(),
        )

    return call


def test_every_row_is_recorded(run):
    told, part, printed = run()
    assert told is None and "cpu" in part["machine"]
    golden, attention = part["tables"]["golden"], part["tables"]["attention"]
    quantities = [row["quantity"] for row in golden if row["file"] == "sit.npz"]
    assert quantities[4] == "fwd/velocity" and "fwd/velocity in bfloat16" in quantities
    assert len(golden) == 2 * 8 + 31 and all(row["error"] < row["tolerance"] for row in golden)
    assert golden[0]["tolerance"] == pytest.approx(5e-5)
    for row in golden:
        assert (row["error"] > 1e-3) == row["quantity"].endswith("in bfloat16")
    assert len(attention) == 8
    for row in attention:
        assert row["cudnn"] == "no cuDNN on cpu" and 1e-4 < row["xla"] < 2e-2
    assert all(row["ok"] for row in golden + attention)
    assert printed.out.count("| file | quantity |") == 3


def test_what_is_beyond_its_tolerance_is_told_at_the_end(run, monkeypatch):
    monkeypatch.setattr(gpu_check, "check_golden", lambda *arguments, **options: None)
    monkeypatch.setattr(gpu_check, "TOLERANCE", 1e-6)
    told, part, _ = run()
    assert told.startswith("error: beyond tolerance: output of xla's attention of 4 x 16 x 16 x 72")
    rows = part["tables"]["attention"]
    assert len(rows) == 8 and not any(row["ok"] for row in rows)


def test_a_wrong_golden_number_is_told(run, monkeypatch):
    monkeypatch.setattr(gpu_check, "check_attention", lambda *arguments: None)
    monkeypatch.setattr(gpu_check, "LAST_GROUPS", ())
    monkeypatch.setattr(gpu_check, "FACTOR", 0.01)
    told, part, _ = run()
    rows = part["tables"]["golden"]
    assert f"{next(row['quantity'] for row in rows if not row['ok'])} of" in told
    assert sum(not row["ok"] for row in rows) == len(told.split(", "))


def test_nothing_begins_when_the_time_is_up(run):
    told, part, printed = run("--seconds=1")
    assert told is None and "tables" not in part
    assert "forward of sit" in part["left_out"] and "attention of 4 x 16 x 12 x 64" in printed.out
