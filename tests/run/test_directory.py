"""A workdir knows what may change between two runs in it."""

import json
import runpy

import pytest
from commands import REPOSITORY
from etils import epath
from tiny import pixel_spec

from sra_jax.core.errors import InputError
from sra_jax.run import directory as workdirs

DATA = pixel_spec(8, num_classes=10, num_examples=1797)


@pytest.fixture
def config():
    return runpy.run_path(str(REPOSITORY / "configs" / "digits.py"))["get_config"]().to_dict()


@pytest.fixture
def begun(config, tmp_path):
    """A workdir with a checkpoint, of which only the name is looked at."""
    workdir = epath.Path(tmp_path)
    workdirs.save_and_check(workdir, config, DATA)
    (workdir / "checkpoints" / "5").mkdir(parents=True)
    return workdir


def test_what_does_not_matter_may_change(begun, config):
    config["train"] |= {"steps": 9, "log_every": 1, "keep": 7}
    config["mesh"]["fsdp"] = 4
    config["evaluation"]["grid_every"] = 3
    workdirs.save_and_check(begun, config, DATA)
    assert workdirs.read(begun).config["train"]["steps"] == 9


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("optimizer", "learning_rate", 1.0),
        ("train", "batch_size", 1),
        ("method.sra", "gap", "fixed"),
    ],
)
def test_what_matters_is_named(begun, config, section, field, value):
    fields = config["method"]["sra"] if section == "method.sra" else config[section]
    fields[field] = value
    with pytest.raises(InputError, match=f"config.{section}.{field} was .*, is {value}; restore"):
        workdirs.save_and_check(begun, config, DATA)


def test_a_method_more_or_less_is_another_run_and_one_of_weight_0_is_none(begun, config):
    sra = config["method"]["sra"]
    for method in ({}, {"sra": sra | {"weight": 0}}):
        with pytest.raises(InputError, match=r"config.method.sra\S* "):
            workdirs.save_and_check(begun, config | {"method": method}, DATA)


def test_fields_of_a_newer_version_are_no_change(begun, config):
    """Here it is the saved config that lacks them."""
    path = begun / workdirs.CONFIG_FILE
    saved = json.loads(path.read_text())
    del saved["config"]["method"]["sra"]["teacher_fraction"], saved["config"]["evaluation"]
    path.write_text(json.dumps(saved))
    config["method"]["sra"]["teacher_fraction"] = 0.5
    with pytest.raises(InputError, match=r"teacher_fraction was 1.0, is 0.5"):
        workdirs.save_and_check(begun, config, DATA)
    config["method"]["sra"]["teacher_fraction"] = 1.0
    workdirs.save_and_check(begun, config, DATA)
