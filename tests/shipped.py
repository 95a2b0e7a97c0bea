"""The shipped configs as nested dicts, changes of them, and refusals."""

import copy
import importlib.util
from pathlib import Path

import jax.numpy as jnp
import pytest

from sra_jax.config.schema import Experiment
from sra_jax.core.errors import InputError
from sra_jax.methods import Method

CONFIGS = Path(__file__).parents[1] / "configs"
IMAGENET_IMAGES = 1_281_167
STEPS_PER_EPOCH = IMAGENET_IMAGES // 256


def load(name: str, argument: str | None = None) -> dict:
    """The nested dict of configs/NAME.py, or of configs/NAME.py:ARGUMENT."""
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*([] if argument is None else [argument])).to_dict()


def override(config: dict, **changes) -> dict:
    """`config` with `section__field=value` changed, as --config.section.field=value does."""
    config = copy.deepcopy(config)
    for name, value in changes.items():
        *sections, field = name.split("__")
        section = config
        for part in sections:
            section = section[part]
        section[field] = value
    return config


def method_of(experiment: Experiment) -> Method:
    """The one method of an experiment."""
    (method,) = experiment.methods
    return method


def weight_at(experiment: Experiment, step: int = 0) -> float:
    """The weight of its one method's loss."""
    return float(method_of(experiment).weight(jnp.int32(step)))


def assert_refused(act, *parts):
    """`act` raises InputError, in one line that holds all `parts`."""
    with pytest.raises(InputError) as refusal:
        act()
    message = str(refusal.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
