"""Infers the task and its classes from the target's values."""

from typing import Any, NamedTuple

from flywheel_ml.data.adoption.overrides import Overrides, Task
from flywheel_ml.data.adoption.profiling import ColumnProfile
from flywheel_ml.utils.config_model import suggest
from flywheel_ml.utils.errors import ConfigError, DataError

MAX_CLASSES = 200
MAX_INTEGER_CLASSES = 12
MIN_ROWS_PER_CLASS = 10
POSITIVE = frozenset(
    (
        *("yes", "y", "t", "ja", "oui", "si", "sí", "sim", "positive", "pos"),
        *("bad", "fraud", "default", "churn", "sick", "malignant", "fail", "spam"),
    )
)
NEGATIVE = frozenset(
    (
        *("no", "n", "f", "nein", "nee", "nej", "non", "não", "negative", "neg"),
        *("good", "none", "normal", "healthy", "benign", "pass", "ham"),
    )
)


class Labels(NamedTuple):
    """The task, its classes as they are in the table (positive last; None for numbers and booleans), and the reason."""

    task: Task
    classes: tuple[str | int, ...] | None
    why: str


def infer_labels(column: ColumnProfile, overrides: Overrides) -> Labels:
    """Infer the task and classes of a target.

    Raises:
        ConfigError: an override contradicts the values.
        DataError: the values leave nothing to learn.
    """
    if column.distinct < 2:
        value = next(iter(column.values or {}), None)
        held = "no value in any row" if column.distinct == 0 else f"one value only ({value!r})"
        raise DataError(f"the target '{column.name}' has {held}; there is nothing to learn")
    if column.parse.type == "datetime":
        raise DataError(f"the target '{column.name}' is a date; choose a number, a text or a boolean to predict")
    if column.parse.type in ("float", "integer"):
        found = _infer_from_numbers(column, overrides.task)
    elif overrides.task == "regression":
        raise ConfigError(
            f"--task regression: the target '{column.name}' holds no numbers ({column.parse.description})"
        )
    elif column.parse.type == "boolean":
        found = Labels("binary", None, "true or false")
    else:
        found = _infer_from_texts(column)
    if overrides.task not in (None, found.task):
        raise ConfigError(f"--task {overrides.task}: the target '{column.name}' has {found.why}, which is {found.task}")
    return _choose_positive(found, column, overrides.positive)


def _infer_from_numbers(column: ColumnProfile, requested_task: Task | None) -> Labels:
    counts = column.values
    if counts is None or requested_task == "regression" or not all(float(value).is_integer() for value in counts):
        if requested_task in ("binary", "multiclass"):
            raise ConfigError(
                f"--task {requested_task}: '{column.name}' has {column.distinct:,} distinct numbers, not classes"
            )
        return Labels("regression", None, "you said so" if requested_task else f"{column.distinct:,} distinct numbers")
    few = len(counts) <= MAX_INTEGER_CLASSES and sum(counts.values()) >= MIN_ROWS_PER_CLASS * len(counts)
    if not requested_task and not few and len(counts) > 2:
        why = (
            f"{len(counts)} distinct whole numbers, too many or too rare for classes (--task multiclass says otherwise)"
        )
        return Labels("regression", None, why)
    task: Task = "binary" if len(counts) == 2 else "multiclass"
    return Labels(task, tuple(sorted(int(value) for value in counts)), f"{len(counts)} whole numbers")


def _infer_from_texts(column: ColumnProfile) -> Labels:
    counts = column.values
    if counts is None or len(counts) > MAX_CLASSES:
        raise DataError(
            f"the target '{column.name}' has {column.distinct:,} distinct texts, and more than {MAX_CLASSES} are no "
            "classes; choose another target, or group them"
        )
    return Labels("binary" if len(counts) == 2 else "multiclass", tuple(sorted(counts)), f"{len(counts)} classes")


def _choose_positive(found: Labels, column: ColumnProfile, positive: str) -> Labels:
    if found.classes is None or found.task != "binary":
        if positive and not (column.parse.type == "boolean" and positive.lower() == "true"):
            held = "is boolean, and true is its positive class" if found.task == "binary" else f"asks for {found.task}"
            raise ConfigError(f"--positive needs two classes to choose from, and '{column.name}' {held}; leave it out")
        return found
    names = [str(label) for label in found.classes]
    if positive and positive not in names:
        raise ConfigError(f"--positive: '{column.name}' has no class '{positive}'; {suggest(positive, names)}")
    chosen, why = (names.index(positive), "you said so") if positive else _guess_positive(found.classes, column)
    ordered = (found.classes[1 - chosen], found.classes[chosen])
    return found._replace(classes=ordered, why=f"{found.why}; '{ordered[1]}' is the positive one, {why}")


def _guess_positive(classes: tuple[str | int, ...], column: ColumnProfile) -> tuple[int, str]:
    if column.parse.type != "string":
        return 1, "the larger number"
    first, second = (str(label).lower() for label in classes)
    if second in POSITIVE or first in NEGATIVE:
        return 1, "by its name"
    if first in POSITIVE or second in NEGATIVE:
        return 0, "by its name"
    counts: dict[Any, int] = column.values or {}
    return (0 if counts[classes[0]] < counts[classes[1]] else 1), "the rarer one (--positive says otherwise)"
