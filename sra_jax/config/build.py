"""Sections of a nested dict as dataclasses: names, types and missing fields are checked here."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from sra_jax.core.errors import InputError, expect_one_of


def build(cls: type, section: str, values: Mapping[str, Any]) -> Any:
    """A dataclass from the values of a section, lists turned into tuples, types checked."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    required = [name for name, f in fields.items() if f.default is dataclasses.MISSING]
    check_names(f"config section {section}", values, fields, required)
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    kinds = typing.get_type_hints(cls)  # a field's own type may be a string
    for name, value in values.items():
        check_type(f"{section}.{name}", value, kinds[name])
    return cls(**values)


def check_type(name: str, value: Any, kind: Any) -> None:
    """Raises InputError unless `value` is of `kind`: int, float, str, bool, None, a tuple of them,
    or one of several of these."""
    if isinstance(kind, types.UnionType):
        if not any(_is_of(name, value, part) for part in typing.get_args(kind)):
            raise InputError(f"{name} is {value!r}, expected {kind}")
        return
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        if kinds[-1] is Ellipsis and isinstance(value, tuple):
            kinds = kinds[:1] * len(value)
        if not isinstance(value, tuple) or len(value) != len(kinds):
            raise InputError(f"{name} is {value!r}, expected {len(kinds)} values")
        for part, part_kind in zip(value, kinds, strict=True):
            check_type(name, part, part_kind)
        return
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{name} is {value!r}, expected {kind.__name__}")


def _is_of(name: str, value: Any, kind: Any) -> bool:
    try:
        check_type(name, value, kind)
    except InputError:
        return False
    return True


def check_names(what: str, given: Mapping[str, Any], known, required) -> None:
    """Raises InputError if `given` has a name that is not `known`, or lacks a `required` one."""
    if not isinstance(given, Mapping):
        raise InputError(f"{what} is {given!r}, expected named fields")
    for name in given:
        expect_one_of(f"field of {what}", name, known)
    if missing := [name for name in required if name not in given]:
        raise InputError(f"{what} lacks {', '.join(missing)}")


def defaults(cls: type) -> dict[str, Any]:
    """The fields of a dataclass with their defaults; one without a default is empty or zero."""
    kinds = typing.get_type_hints(cls)
    return {
        f.name: _empty(kinds[f.name]) if f.default is dataclasses.MISSING else f.default
        for f in dataclasses.fields(cls)
    }


def _empty(kind: Any) -> Any:
    if isinstance(kind, types.UnionType):
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        return () if parts[-1] is Ellipsis else tuple(_empty(part) for part in parts)
    return kind()
