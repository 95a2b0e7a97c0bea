"""The notebook runs from top to bottom, holds no logic of its own and is stored without outputs."""

import ast
import os
import shutil

import nbformat
import pytest
from commands import REPOSITORY, environment
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOK = REPOSITORY / "notebooks" / "linear_probe.ipynb"
SECONDS = 240
LOGIC = (ast.FunctionDef, ast.Lambda, ast.For, ast.While, ast.If, ast.comprehension, ast.BinOp)


def read(workdir=None):
    """The notebook, of another workdir if one is given."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if workdir is not None:
        (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
        assert ast.parse(cell.source).body[0].targets[0].id == "WORKDIR"
        cell.source = f"WORKDIR = {str(workdir)!r}"
    return notebook


def execute(notebook, monkeypatch):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    client = NotebookClient(
        notebook, timeout=SECONDS, resources={"metadata": {"path": os.fspath(NOTEBOOK.parent)}}
    )
    return client.execute()


def test_it_runs_and_shows_what_it_promises(digits_run, tmp_path, monkeypatch):
    workdir = shutil.copytree(digits_run, tmp_path / "run")
    cells = execute(read(workdir), monkeypatch).cells
    shown = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    assert sum("image/png" in data for data in shown) == 4
    (result,) = [data["text/plain"] for data in shown if "'top1'" in data.get("text/plain", "")]
    found = ast.literal_eval(result)
    assert found["step"] == 120 and 0 < found["cells"][0]["top1"] <= 1
    assert not any(output.output_type == "error" for c in cells for output in c.get("outputs", []))


def test_without_a_run_it_says_what_to_do(tmp_path, monkeypatch):
    notebook = read(tmp_path / "none")
    with pytest.raises(CellExecutionError):
        execute(notebook, monkeypatch)
    (error,) = [o for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "error"]
    (line,) = error.traceback
    assert line == f"error: no workdir {tmp_path / 'none'}; train first, or check the path"


def test_it_holds_no_logic():
    for cell in read().cells:
        if cell.cell_type == "code":
            logic = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, LOGIC)]
            assert not logic, cell.source


def test_it_is_stored_without_outputs():
    notebook = read()
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
