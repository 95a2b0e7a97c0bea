"""Names of the features that images are measured by, and of the numbers."""

import re
from collections.abc import Mapping
from typing import Any

from sra_jax.core.errors import InputError, expect_one_of

FEATURES = ("inception", "classifier")
CLASSIFIER_PREFIX = "classifier_"  # of numbers that only compare models on one data set
LABELS = {
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "Inception Score",
    "precision": "precision",
    "recall": "recall",
}
_RENAMED = {"probe": "classifier"}  # features, by their name in version 0.1


def label(name: str) -> str:
    """The name of a number in logs: "classifier_fid" -> "FID (classifier)"."""
    plain = LABELS[name.removeprefix(CLASSIFIER_PREFIX)]
    return f"{plain} (classifier)" if name.startswith(CLASSIFIER_PREFIX) else plain


def check_features(field: str, value: str) -> None:
    """Raises InputError if `value`, given for the flag or config field `field`, is no feature."""
    if value in _RENAMED:
        new = _RENAMED[value]
        raise InputError(f"{field}={value} is called {new} now; use {field}={new}")
    expect_one_of(field, value, FEATURES)


def current_name(features: Any) -> Any:
    """The name of `features` in this version. Anything but a name of version 0.1 is unchanged."""
    return _RENAMED.get(features, features) if isinstance(features, str) else features


def current_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of evaluation.jsonl with the names of this version."""
    record = {re.sub("^probe_", CLASSIFIER_PREFIX, name): found for name, found in record.items()}
    if "features" in record:
        record["features"] = current_name(record["features"])
    return record
