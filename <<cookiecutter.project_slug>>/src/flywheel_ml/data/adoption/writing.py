"""Renders a project's files for another table: contract.yaml, params.yaml, and code without the example."""

import ast
import io
import json
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jinja2
import polars as pl
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.emitter import RoundTripEmitter
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from flywheel_ml.core.catalog import STANDARD_ESTIMATORS, list_estimators
from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.data.adoption.inference import Proposal
from flywheel_ml.utils.errors import ConfigError

LINE = 120
WIDTH = 100
"""Column from which ruamel.yaml breaks a list, after the item that crosses it; so few lines are longer than `LINE`."""
GATES = """
significance_level: 0.05
min_score: null
min_skill_score: null
min_gain_over_linear: null
max_drop_from_champion: 0.01
parity_tolerance: 0.00001
min_slice_score: null
max_slice_drop: null
min_class_recall: 0.0
max_calibration_error: 0.15
coverage_tolerance: 0.1
max_group_gap: null
forbidden_columns: []
max_feature_us: 1000.0
max_latency_ms: 20.0
max_size_mb: 200.0
"""
"""Gates for any table: they reject only useless models."""
NETWORK = {"alpha": 0.1, "max_steps": 2000}
"""On a few thousand rows, a network that trains longer memorises them."""
L2 = 1.0
"""Without it leaves of a rare class grow beyond bounds: for the carriers of 20,000 flights, log loss 29.5, not 0.22."""

SOURCE = '''"""Fetches the raw table: replace this file for a source of your own.

`fetch` is called once, if the raw table of params.yaml is missing and DVC has no copy of it.
Afterwards DVC versions the file, and everything else reads only that file.

This project's table was adopted from a file or a query, which cannot be fetched again from here. To fetch the table
instead, write it to `path` as Parquet, with the columns of contract.yaml.
"""

from pathlib import Path

from flywheel_ml.utils.errors import DataError


def fetch(path: Path) -> None:
    """Explain how to restore the raw table.

    Raises:
        DataError: always.
    """
    raise DataError(
        f"{path} is missing and DVC has no copy; run `.venv/bin/dvc pull`, or `make adopt` with the table again"
    )
'''

README = "readme.md.jinja"
_OPEN, _CLOSE = "<!-- about the table: `adopt` writes this part anew -->", "<!-- /about the table -->"
_KINDS = {"binary": "one of two classes", "multiclass": "one of {} classes", "regression": "a number"}
_ANSWERS = {
    "binary": "the class and the probability of each",
    "multiclass": "the most likely class and the probability of each",
    "regression": "the number, and an interval around it",
}

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.()/-]*(?: [A-Za-z0-9_.()/-]+)*")
_WORDS = frozenset(("true", "false", "yes", "no", "on", "off", "y", "n", "null", "nan", "inf"))


def render_contract(proposal: Proposal, before: str, source: str) -> str:
    """Render contract.yaml with the opening comment of the current text `before`; `source` describes the origin."""
    return _opening_comment(before) + _dump(
        {
            "version": 1,
            "name": _quote_if_needed(proposal.name),
            "description": _quote_if_needed(f"Rows of {source}."),
            "columns": [_to_entry_node(column) for column in proposal.columns],
        }
    )


def render_decisions(proposal: Proposal, before: str) -> str:
    """Render decisions.yaml with the opening comment of the current one, `before`."""
    return _opening_comment(before) + _dump(
        {
            "decisions": [_to_entry_node(decision._asdict()) for decision in proposal.decisions],
            "issues": [_to_entry_node(issue._asdict()) for issue in proposal.issues],
        }
    )


def render_readme(before: str, contract: Contract, by: str, rows: int, source: str, raw: Path) -> str:
    """Replace the part of README.md about the table; without its markers, README.md stays unchanged."""
    start, end = before.find(_OPEN), before.find(_CLOSE)
    if not 0 <= start < end:
        return before
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        # Markdown, not HTML: what could break it is escaped by `_escape_markdown`.
        autoescape=False,  # noqa: S701
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    instance = {column.name: _example_value(column) for column in contract.inputs}
    about = environment.get_template(README).render(
        name=_escape_markdown(contract.name),
        rows=rows,
        source=_escape_markdown(source),
        inputs=len(contract.inputs),
        target=_escape_markdown(contract.target.name),
        kind=_KINDS[contract.task].format(len(contract.classes)),
        by=by,
        instance=_escape_quotes(json.dumps({"instances": [instance]}, ensure_ascii=False)),
        answer=_ANSWERS[contract.task],
        label=_escape_quotes(json.dumps(contract.classes[-1] if contract.classes else _example_value(contract.target))),
        raw=raw.as_posix(),
    )
    return f"{before[:start]}{_OPEN}\n\n{about}\n{before[end:]}"


def render_makefile(before: str, raw: Path) -> str:
    """Render the Makefile so that `make score` scores the adopted table by default."""
    return re.sub(r"^(INPUT \?= ).*$", rf"\g<1>{raw.as_posix()}", before, count=1, flags=re.MULTILINE)


def render_params(proposal: Proposal, before: str, raw: Path) -> str:
    """Update the parts of params.yaml that depend on the table; everything else, including comments, stays.

    Raises:
        ConfigError: the current text is not a YAML mapping.
    """
    content = _build_yaml().load(before)
    if not isinstance(content, CommentedMap):
        raise ConfigError("params.yaml: expected keys and values; restore it from git")
    _update_group(content, "data", {"raw": raw.as_posix(), "until": None})
    _update_group(content, "split", proposal.split, whole=True)
    candidates = CommentedSeq(list_estimators(STANDARD_ESTIMATORS, proposal.task))
    candidates.fa.set_flow_style()
    _update_group(content, "train", {"estimator": "auto", "candidates": candidates, "calibration": "auto"})
    if content.get("tune", {}).get("trials"):
        content["tune"]["trials"] = 0
    if "hist_gradient_boosting" in content["train"]:
        boosting = {"l2_regularization": L2, "early_stopping": proposal.early_stopping}
        _update_group(content["train"], "hist_gradient_boosting", boosting)
    if "mlp" in content["train"]:
        _update_group(content["train"], "mlp", NETWORK)
    slices, groups = (
        CommentedSeq([_quote_if_needed(name) for name in names]) for names in (proposal.slices, proposal.groups)
    )
    for names in (slices, groups):
        names.fa.set_flow_style()
    if "groups" not in content["evaluate"]:  # Appended, it would follow the blank line after the last key.
        content["evaluate"].insert(0, "groups", groups)
    _update_group(content, "evaluate", {"slices": slices, "groups": groups, "min_slice_rows": proposal.min_slice_rows})
    if "costs" in content["evaluate"]:
        _update_group(content["evaluate"], "costs", {"false_positive": 1.0, "false_negative": 1.0})
    _update_group(content, "gates", _build_yaml().load(GATES))
    # The blank line after a group went with its last key.
    return re.sub(r"(?<=[^\n]\n)(?=(?:train|evaluate):)", "\n", _dump(content))


def render_until(before: str, until: str) -> str:
    """Set `data.until` in params.yaml, see `render_values`."""
    return render_values(before, {"data": {"until": until}})


def render_values(before: str, values: Mapping[str, Mapping[str, Any]]) -> str:
    """Set values in params.yaml, group by group; everything else, including comments, stays.

    Raises:
        ConfigError: the current text is not a YAML mapping.
    """
    content = _build_yaml().load(before)
    if not isinstance(content, CommentedMap):
        raise ConfigError("params.yaml: expected keys and values; restore it from git")
    for group, named in values.items():
        _update_group(content, group, dict(named))
    return _dump(content)


def remove_example(pyproject: str) -> str:
    """Remove the example's dependencies from pyproject.toml."""
    kept = re.sub(r"^example = \[[^\]]*\]\n", "", pyproject, flags=re.MULTILINE)
    return re.sub(r'^(default-groups = \[.*?)"example",? ?', r"\1", kept, flags=re.MULTILINE)


def remove_features(before: str, columns: Collection[str]) -> str:
    """Remove the features that use a column which no longer exists from features.py."""
    tree = ast.parse(before)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    table = next(
        node for node in tree.body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "FEATURES"
    )
    listed = [ast.unparse(item) for item in table.value.elts] if isinstance(table.value, ast.Tuple) else []
    gone = [
        name
        for name in listed
        if name in functions and not {argument.arg for argument in functions[name].args.args} <= set(columns)
    ]
    if not gone:
        return before
    lines: list[str | None] = list(before.splitlines())
    for name in gone:
        node = functions[name]
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        assert node.end_lineno is not None
        end = node.end_lineno
        while end < len(lines) and not (lines[end] or "").strip():
            end += 1
        lines[first - 1 : end] = [None] * (end - first + 1)
    kept = [name for name in listed if name not in gone]
    assert table.value is not None
    assert table.end_lineno is not None
    value = f"({', '.join(kept)}{',' if len(kept) == 1 else ''})"
    lines[table.lineno - 1 : table.end_lineno] = [
        f"FEATURES: {ast.unparse(table.annotation)} = {value}",
        *[None] * (table.end_lineno - table.lineno),
    ]
    text = "\n".join(line for line in lines if line is not None) + "\n"
    # One blank line separates a constant from imports, two from a function.
    return text if functions.keys() - set(gone) else re.sub(r"\n{3,}(?=FEATURES)", "\n\n", text)


def write_parquet(rows: pl.LazyFrame, path: Path) -> None:
    """Write rows as Parquet without holding them in memory."""
    rows.sink_parquet(path, compression="zstd", statistics=True)


def _opening_comment(text: str) -> str:
    return "".join(f"{line}\n" for line in text.splitlines() if line.startswith("#"))


def _example_value(column: Column) -> Any:
    """A value that the contract allows."""
    if column.categories:
        return column.categories[0]
    if column.type in ("float", "integer"):
        low, high = column.range or (0.0, 2.0)
        middle = float(f"{(low + high) / 2:.3g}")
        inside = middle if low <= middle <= high else low
        return round(inside) if column.type == "integer" else inside
    return {"boolean": True, "datetime": "2024-01-31T12:00:00"}.get(column.type, "text")


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~-])", r"\\\1", " ".join(text.split()))


def _escape_quotes(text: str) -> str:
    """Escape for single quotes in a shell."""
    return text.replace("'", "'\\''")


def _build_yaml() -> YAML:
    yaml = YAML()
    yaml.Emitter, yaml.Representer = _Emitter, _Representer
    yaml.width = WIDTH
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _dump(content: Mapping[str, Any]) -> str:
    # For 10,000 columns, contract.yaml takes 3 s and decisions.yaml 2 s; inferring their contents takes 11 s.
    written = io.StringIO()
    _build_yaml().dump(content, written)
    return written.getvalue()


def _to_entry_node(entry: Mapping[str, Any]) -> CommentedMap:
    """A column, decision or issue: on one line if it fits."""
    node = CommentedMap((key, _to_node(value)) for key, value in entry.items())
    # JSON is slightly longer, because of its quotes.
    if len(json.dumps(entry, ensure_ascii=False)) <= LINE:
        node.fa.set_flow_style()
    return node


def _to_node(value: Any) -> Any:
    if isinstance(value, str):
        return _quote_if_needed(value)
    if isinstance(value, dict):
        node: CommentedMap | CommentedSeq = CommentedMap((key, _to_node(item)) for key, item in value.items())
    elif isinstance(value, list):
        node = CommentedSeq([_to_node(item) for item in value])
    else:
        return value
    node.fa.set_flow_style()
    return node


def _update_group(content: CommentedMap, group: str, values: dict[str, Any], whole: bool = False) -> None:
    part = content.setdefault(group, CommentedMap())
    if whole:
        for key in [key for key in part if key not in values]:
            del part[key]
    for key, value in values.items():
        if key not in part or part[key] != value:
            part[key] = _quote_if_needed(value) if isinstance(value, str) else value


def _quote_if_needed(text: str) -> str:
    is_plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    return text if is_plain else DoubleQuotedScalarString(text)


class _Emitter(RoundTripEmitter):
    """Breaks lines between the items of a list, never within a text, where ruamel.yaml would."""

    def process_scalar(self) -> None:
        width, self.best_width = self.best_width, sys.maxsize
        super().process_scalar()
        self.best_width = width


class _Representer(RoundTripRepresenter):
    """Writes None as `null`, not as an empty value."""


def _represent_null(representer: RoundTripRepresenter, _: None) -> ScalarNode:
    node: ScalarNode = representer.represent_scalar("tag:yaml.org,2002:null", "null")
    return node


_Representer.add_representer(type(None), _represent_null)
