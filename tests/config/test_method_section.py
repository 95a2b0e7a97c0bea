"""The section `method` of a config, and a user's own methods."""

import dataclasses
import sys

import pytest
from shipped import STEPS_PER_EPOCH, assert_refused, load, override

from sra_jax.config.schema import Experiment
from sra_jax.core.errors import InputError
from sra_jax.methods import METHODS, SRA
from sra_jax.methods.schedule import WeightSchedule


def test_a_method_section_holds_every_field_so_that_flags_can_override_it():
    section = load("sit_sra", "XL/2")["method"]["sra"]
    own = {f.name for f in dataclasses.fields(SRA)}
    assert section.keys() == own | {"weight", "constant_epochs", "decade_epochs"}


def test_a_method_has_the_papers_weight_and_defaults_unless_asked():
    config = override(load("sit_sra", "XL/2"))
    config["method"] = {"sra": {"student_block": 8, "teacher_block": 20}}
    weight = WeightSchedule(0.2, steps_per_epoch=STEPS_PER_EPOCH)
    expected = SRA(student_block=8, teacher_block=20, weight=weight)
    assert Experiment.from_dict(config).methods == (expected,)


def test_a_method_without_weight_is_no_method():
    config = load("sit_sra", "XL/2")
    for plain in (override(config, method={}), override(config, method__sra__weight=0)):
        assert Experiment.from_dict(plain).methods == ()
    # Sampling does not look at methods.
    strange = override(config, method={"unknown": {}}, method_files=["missing.py"])
    assert Experiment.from_dict(strange, with_methods=False).methods == ()


def test_unknown_methods_and_fields_are_refused_by_name():
    config = load("sit_sra", "XL/2")
    bad = [
        ({"method": {"sar": {}}}, "'sar'", "did you mean 'sra'"),
        ({"method": 3}, "section method is 3", "named fields"),
        ({"method": {"sra": 3}}, "section method.sra is 3", "named fields"),
        ({"method__sra__weigth": 0.1}, "'weigth'", "did you mean 'weight'"),
        ({"method__sra__constant_epochs": 0.5}, "sra.constant_epochs is 0.5", "int"),
        ({"method__sra__constant_epochs": -1}, "method.sra.constant_epochs is -1", "positive"),
        ({"method__sra__head": 1}, "method.sra.head is 1", "bool"),
    ]
    for changes, *parts in bad:
        refused = override(config, **changes)
        assert_refused(lambda refused=refused: Experiment.from_dict(refused), *parts)
    argument = "XL/2,method=sar"
    assert_refused(lambda: load("sit_sra", argument), "'sar'", "did you mean 'sra'")


OWN_METHOD = """
from dataclasses import dataclass
from typing import ClassVar

from sra_jax.methods import METHODS, Method


@dataclass(frozen=True, kw_only=True)
class Mine(Method):
    name: ClassVar[str] = "mine"
    block: int
    strength: float = 2.0

    def taps(self):
        return (self.block,)


METHODS["mine"] = Mine
"""


@pytest.fixture
def own_file(tmp_path):
    """A user's file that adds a method, which this test alone has."""
    path = tmp_path / "my_method.py"
    path.write_text(OWN_METHOD)
    yield path
    METHODS.pop("mine", None)
    sys.modules.pop("sra_jax_method_my_method", None)


@pytest.mark.parametrize("first_line", ["", "from __future__ import annotations"])
def test_a_users_file_adds_a_method_beside_others(own_file, first_line):
    own_file.write_text(first_line + OWN_METHOD)
    config = load("sit_sra", "XL/2")
    config["method"]["mine"] = {"block": 3, "weight": 0.5, "decade_epochs": 7}
    assert_refused(lambda: Experiment.from_dict(config), "'mine'", "sra")  # not loaded yet
    for _ in range(2):  # it may be loaded again
        experiment = Experiment.from_dict(config | {"method_files": [str(own_file)]})
        sra, mine = experiment.methods
        assert isinstance(sra, SRA) and (mine.block, mine.strength) == (3, 2.0)
        assert mine.weight == WeightSchedule(0.5, STEPS_PER_EPOCH, 0, 7)
    bad = override(config, method__mine__block=29, method_files=(str(own_file),))
    assert_refused(lambda: Experiment.from_dict(bad), "method.mine", "block 29", "28 blocks")
    bad = override(config, method__mine__blok=2, method_files=(str(own_file),))
    assert_refused(lambda: Experiment.from_dict(bad), "'blok'", "did you mean 'block'")
    del config["method"]["mine"]["weight"]  # a method's own default
    experiment = Experiment.from_dict(config | {"method_files": (str(own_file),)})
    assert experiment.methods[1].weight.weight == 1.0


def test_files_of_methods_that_are_missing_or_fail_are_refused(own_file):
    config = load("sit_sra", "XL/2")

    def read(*files):
        return Experiment.from_dict(config | {"method_files": files})

    missing = str(own_file.with_name("absent.py"))
    assert_refused(lambda: read(str(own_file), missing), "no Python file", missing)
    text = own_file.rename(own_file.with_suffix(".txt"))
    assert_refused(lambda: read(str(text)), "no Python file", str(text))
    for files in (3, "mine.py", [3], None):
        config_of = config | {"method_files": files}
        assert_refused(lambda c=config_of: Experiment.from_dict(c), "method_files is", repr(files))
    for text, words in {
        "import not_there_at_all": ("ModuleNotFoundError", "not_there_at_all"),
        "def f(:": ("SyntaxError",),
        "raise RuntimeError('first line\\nsecond line')": ("RuntimeError", "first line"),
        "from sra_jax.methods import SRA\nSRA(student_block=2, teacher_block=1)": (
            "student block 2",
        ),
    }.items():
        own_file.write_text(text)
        assert_refused(lambda: read(str(own_file)), str(own_file), *words)


def test_the_section_of_version_0_1_is_answered_with_its_new_name():
    config = load("sit_sra", "S/2")
    config["sra"] = config["method"].pop("sra")
    with pytest.raises(InputError, match=r"section sra is called method\.sra now"):
        Experiment.from_dict(config)
