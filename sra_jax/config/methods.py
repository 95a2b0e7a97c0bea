"""The section `method` of a config: methods by name, each with its fields and its weight."""

import dataclasses
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sra_jax.config.build import build, check_names, check_type, defaults
from sra_jax.core.errors import InputError
from sra_jax.methods import METHODS, Method
from sra_jax.methods.schedule import WeightSchedule

# Every method has them; together they are its weight's schedule. No decade: the weight is constant.
SCHEDULE = {"weight": float, "constant_epochs": int, "decade_epochs": int}


def method_section(name: str, **fields: Any) -> dict[str, Any]:
    """The config fields of a method, with their defaults: a flag can override each of them."""
    section = defaults(METHODS[name])
    weight = section.pop("weight")
    schedule = {field: getattr(weight, field) or 0 for field in SCHEDULE}
    return {**schedule, **section, **fields}


def read_methods(section: Mapping[str, Any], steps_per_epoch: int) -> tuple[Method, ...]:
    """The methods of a config, without those of weight 0.

    Raises:
      InputError: an unknown method or field, or a value that cannot be; names it.
    """
    check_names("config section method", section, METHODS, ())
    methods = [_read(name, fields, steps_per_epoch) for name, fields in section.items()]
    return tuple(method for method in methods if method.weight.weight > 0)


def _read(name: str, config: Mapping[str, Any], steps_per_epoch: int) -> Method:
    kind, where = METHODS[name], f"method.{name}"
    if kind.name != name:
        raise InputError(f"METHODS has {kind.__name__} as {name!r}, but its name is {kind.name!r}")
    known = {*SCHEDULE, *(field.name for field in dataclasses.fields(kind))}
    check_names(f"config section {where}", config, sorted(known), ())
    fields, default = dict(config), kind.__dataclass_fields__["weight"].default
    for field, of in SCHEDULE.items():
        check_type(f"{where}.{field}", fields.get(field, 0), of)
    try:
        weight = WeightSchedule(
            weight=fields.pop("weight", default.weight),
            steps_per_epoch=steps_per_epoch,
            constant_epochs=fields.pop("constant_epochs", default.constant_epochs),
            decade_epochs=fields.pop("decade_epochs", default.decade_epochs) or None,
        )
    except InputError as error:
        raise InputError(f"{where}.{error}") from None
    return dataclasses.replace(build(kind, where, fields), weight=weight)


def load_method_files(paths: Sequence[str]) -> None:
    """Runs Python files of the user, each of which adds a method to `METHODS`.

    Raises:
      InputError: a file is missing or fails.
    """
    if not isinstance(paths, (list, tuple)) or not all(isinstance(path, str) for path in paths):
        raise InputError(f"method_files is {paths!r}, expected a list of Python files")
    for path in paths:
        file = Path(os.path.expanduser(path))
        if file.suffix != ".py" or not file.is_file():
            raise InputError(
                f"no Python file {path}; method_files names the files of your own methods"
            )
        name = f"sra_jax_method_{file.stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        try:
            # Annotations that are strings are looked up in the module, by its name.
            module = sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        except Exception as error:  # it is code, and may raise anything
            reason = " ".join(str(error).split())
            raise InputError(f"{path} fails with {type(error).__name__}: {reason}") from error
