"""The code version of a run follows the source that decides its numbers."""

import shutil

import pytest

from sra_jax.run import provenance


@pytest.mark.parametrize(
    ("source", "decides"),
    [
        ("methods/sra.py", True),
        ("core/random.py", True),
        ("training/objective.py", True),
        ("conditioning/class_labels.py", True),
        ("cli/app.py", False),
    ],
)
def test_only_numeric_source_changes_the_code_version(tmp_path, monkeypatch, source, decides):
    package = shutil.copytree(provenance.PACKAGE, tmp_path / "sra_jax")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    before = provenance.code_version()
    with (package / source).open("a") as file:
        file.write("# another version\n")
    assert (provenance.code_version() != before) == decides
