"""Frozen, typed, strict configuration: an unknown key is an error that names the nearest valid one."""

import difflib
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json

from flywheel_ml.utils.errors import ConfigError

MAX_NAMES = 12


class StrictModel(BaseModel):
    """Base of every configuration model: immutable, no unknown keys, finite numbers, no coercion of text."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    renamed: ClassVar[Mapping[str, str]] = {}
    """Old name of a key → its current name."""


Model = TypeVar("Model", bound=BaseModel)


def load(path: Path, model: type[Model], accept_renamed: bool = False) -> Model:
    """Read a YAML file into `model`.

    Args:
        path: path of the file.
        model: model of the content.
        accept_renamed: whether keys may have old names, for files that must not be edited.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not fit the model. One line lists all errors.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist; run this from the project's folder, or restore it from git"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    try:
        content = _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        # YAML reports an error at the end of a text on the line after it.
        last = len(text.rstrip().splitlines())
        line = f", line {min(error.problem_mark.line + 1, last)}" if error.problem_mark else ""
        raise ConfigError(f"{path.name}{line}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}") from None
    return parse(rename_old_keys(content, model) if accept_renamed else content, model, name=path.name)


def rename_old_keys(content: Any, model: type[BaseModel]) -> Any:
    """Return the content with old key names replaced by the current ones, at every level of the model."""
    if isinstance(content, list):
        return [rename_old_keys(one, model) for one in content]
    if not isinstance(content, Mapping):
        return content
    renamed = model.renamed if issubclass(model, StrictModel) else {}
    found = {renamed.get(key, key): value for key, value in content.items()}
    for key, value in found.items():
        inner = _unwrap_model(model.model_fields[key].annotation) if key in model.model_fields else None
        if inner is not None:
            found[key] = rename_old_keys(value, inner)
    return found


def parse(content: Any, model: type[Model], name: str) -> Model:
    """Parse `content`, as read from YAML or JSON, into `model`; errors mention `name` as its source.

    Raises:
        ConfigError: the content does not fit.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f"{name}: expected keys and values, found {type(content).__name__}")
    try:
        # As JSON, where lists may become tuples and texts paths, while `strict` holds for the rest.
        return model.model_validate_json(to_json(content))
    except ValidationError as error:
        raise ConfigError("; ".join(_describe_errors(error, model, name))) from None


def find_duplicates(names: Iterable[str]) -> list[str]:
    """Return the names that occur more than once, sorted."""
    return sorted(name for name, times in Counter(names).items() if times > 1)


def suggest(word: str, known: list[str]) -> str:
    """Return `did you mean …?` for a misspelt word, or the list of known words."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    names = sorted(known)
    return f"known: {', '.join(names[:MAX_NAMES])}{', …' if len(names) > MAX_NAMES else ''}"


class _Loader(yaml.CSafeLoader):
    """Reads plain values as YAML 1.2 and DVC do (NO is a text, 1e-5 a number); rejects duplicate keys, bare dates."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key '{key.value}'", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def reject_date(self, node: yaml.ScalarNode) -> None:
        problem = f'write the date in quotes, "{node.value}": DVC does not support bare dates'
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_PLAIN: dict[str, tuple[str, Iterable[str]]] = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "int": (r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "timestamp": (r"[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt ]+[0-9]{1,2}:[0-9]{2}:[0-9]{2}.*)?", "0123456789"),
}
for _kind, (_pattern, _first) in _PLAIN.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.reject_date)


def _describe_errors(error: ValidationError, model: type[BaseModel], name: str) -> Iterator[str]:
    faults = error.errors()
    renamed = {}
    for fault in faults:
        if fault["type"] == "extra_forbidden":
            *path, key = fault["loc"]
            inner = _find_model(model, tuple(path))
            if issubclass(inner, StrictModel) and str(key) in inner.renamed:
                renamed[fault["loc"]] = ".".join(map(str, (*path, inner.renamed[str(key)])))
    for fault in faults:
        where = ".".join(str(part) for part in fault["loc"])
        if fault["loc"] in renamed:
            yield f"{name}: '{where}' was renamed to '{renamed[fault['loc']]}'; rename the key"
        elif fault["type"] == "extra_forbidden":
            key = str(fault["loc"][-1])
            yield f"{name}: unknown key '{where}'; {suggest(key, _list_keys(model, fault['loc'][:-1]))}"
        elif fault["type"] == "missing":
            if where not in renamed.values():
                yield f"{name}: '{where}' is missing"
        else:
            message = fault["msg"].removeprefix("Value error, ")
            shown = "" if isinstance(fault["input"], Mapping | list) else f" (found {fault['input']!r})"
            yield f"{name}: {where + ': ' if where else ''}{message}{shown}"


def _list_keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    return [field.alias or key for key, field in _find_model(model, path).model_fields.items()]


def _find_model(model: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel]:
    for part in path:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        inner = _unwrap_model(model.model_fields[part].annotation)
        if inner is not None:
            model = inner
    return model


def _unwrap_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _unwrap_model(inner))), None)
