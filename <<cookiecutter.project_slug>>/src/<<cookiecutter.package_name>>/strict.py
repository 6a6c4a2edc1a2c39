"""Frozen, typed, strict configuration: an unknown key is an error that names the nearest valid one."""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import ConfigError


class Strict(BaseModel):
    """Base of every configuration model: immutable, no unknown keys, no silent coercion of strings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Model = TypeVar("Model", bound=BaseModel)


def load(path: Path, model: type[Model]) -> Model:
    """Read a YAML file into `model`.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not fit the model; one line, all faults named.
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
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    return parse(content, model, name=path.name)


def parse(content: Any, model: type[Model], name: str) -> Model:
    """Fit `content` (what YAML or JSON gave) into `model`; `name` says in errors where it came from.

    Raises:
        ConfigError: the content does not fit.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f"{name}: expected keys and values, found {type(content).__name__}")
    try:
        return model.model_validate(content, strict=False)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(error, model, name))) from None


def nearest(word: str, known: list[str]) -> str:
    """`", did you mean …?"` for a misspelt word, or the list of what is known."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(known))}"


def _explain(error: ValidationError, model: type[BaseModel], name: str) -> Iterator[str]:
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            key = str(fault["loc"][-1])
            yield f"{name}: unknown key '{where}'; {nearest(key, _keys_at(model, fault['loc'][:-1]))}"
        elif fault["type"] == "missing":
            yield f"{name}: '{where}' is missing"
        else:
            message = fault["msg"].removeprefix("Value error, ")
            shown = "" if isinstance(fault["input"], Mapping | list) else f" (found {fault['input']!r})"
            yield f"{name}: {where + ': ' if where else ''}{message}{shown}"


def _keys_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        inner = _model_in(model.model_fields[part].annotation)
        if inner is not None:
            model = inner
    return [field.alias or key for key, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner))), None)
