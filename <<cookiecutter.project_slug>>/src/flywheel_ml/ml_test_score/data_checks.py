"""The seven tests of features and data."""

from collections.abc import Iterator, Mapping
from typing import Any

from flywheel_ml.core import paths
from flywheel_ml.ml_test_score.evidence import Check, Evidence, Finding, attack, stage_report
from flywheel_ml.ml_test_score.facts import Facts
from flywheel_ml.model.evaluation.ablation import Ablation


def _check_validation(facts: Facts, report: Any) -> str:
    if report["contract_sha256"] != facts.contract.fingerprint():
        return "the rows were validated by another contract"
    return "" if report["ok"] and report["rows"] else "rows break the contract"


def _check_ablation(facts: Facts, report: Any) -> str:
    found = Ablation.model_validate(report, strict=False)
    if missing := sorted({column.name for column in facts.contract.inputs} - found.importance.keys()):
        return f"the importance of '{missing[0]}' was not measured"
    measured = {one.name for one in found.without}
    if missing := [one.__name__ for one in facts.project.features if one.__name__ not in measured]:
        return f"the model was not refitted without the feature '{missing[0]}'"
    harmful = [one.name for one in found.without if one.is_better]
    return f"the model is better without '{harmful[0]}'; remove it" if harmful else ""


def _verify_cost(facts: Facts) -> Finding:
    measured, limit = facts.model.measured, facts.params.gates.max_feature_us
    if measured is None or measured.digest != facts.model.digest:
        return Finding(False, "the cost of this model's features was not measured", paths.MEASURED.as_posix())
    at = (paths.MEASURED.as_posix(), measured.at)
    wanted = {*(column.name for column in facts.contract.inputs), *(one.__name__ for one in facts.project.features)}
    if missing := sorted(wanted - measured.feature_us.keys()):
        return Finding(False, f"the cost of '{missing[0]}' was not measured", *at)
    worst = max(measured.feature_us, key=lambda name: measured.feature_us[name])
    text = f"the slowest feature, '{worst}', takes {measured.feature_us[worst]:.2g} µs a row, allowed {limit:g}"
    return Finding(measured.feature_us[worst] <= limit, text, *at)


def _verify_requirements(facts: Facts) -> Finding:
    where = (f"{paths.BUNDLE}/contract.yaml", facts.model.at)
    if (manifest := facts.model.manifest) is None:
        return Finding(False, facts.model.problem, where[0])
    if manifest.contract_sha256 != facts.contract.fingerprint():
        return Finding(False, "the model was trained under another contract", *where)
    for column in facts.contract.inputs:
        if column.name in facts.params.gates.forbidden_columns:
            return Finding(False, f"the model uses the forbidden column '{column.name}'", *where)
        if column.personal:
            return Finding(False, f"the model uses '{column.name}', which is personal data", *where)
    forbidden = len(facts.params.gates.forbidden_columns)
    return Finding(True, f"{len(facts.contract.inputs)} inputs: none personal, none of {forbidden} forbidden", *where)


def _check_privacy(facts: Facts, report: Any) -> str:
    if report["contract_sha256"] != facts.contract.fingerprint():
        return "the rows were searched under another contract"
    undeclared = report["undeclared"]
    return f"'{undeclared[0]}' holds personal data and is not declared `personal`" if undeclared else ""


def _verify_files(facts: Facts) -> Finding:
    if facts.personal.found:
        path, counts = next(iter(facts.personal.found.items()))
        return Finding(False, f"{path} holds personal data: {', '.join(counts)}", path)
    text = f"{facts.personal.files} reports, logs and texts hold no personal data"
    if facts.personal.unsearched:
        text += f"; {facts.personal.unsearched} values of personal columns, beyond the limit, were not searched for"
    return Finding(True, text, "reports/, bundle/, var/")


def _verify_erased(facts: Facts) -> Finding:
    if facts.personal.erased_problem:
        return Finding(False, facts.personal.erased_problem, "data/")
    if facts.personal.returned:
        path, rows = next(iter(facts.personal.returned.items()))
        return Finding(False, f"{path} holds {rows} rows of erased entities", path)
    if not facts.personal.erased:
        return Finding(True, "no entity was erased", "data/")
    text = f"none of {facts.personal.erased} erased entities is in {facts.personal.tables} tables"
    return Finding(True, text, "data/")


def _check_tested_features(facts: Facts, figures: Mapping[str, str | float]) -> str:
    tested = str(figures.get("features", "")).split()
    missing = [one.__name__ for one in facts.project.features if one.__name__ not in tested]
    return f"the feature '{missing[0]}' is not tested" if missing else ""


def _list_checks() -> Iterator[Check]:
    yield Check(
        "data.schema",
        "Expectations about the data are captured in a schema and checked",
        (
            stage_report("validate", "reports/validation.json", _check_validation),
            attack("row outside the contract"),
        ),
    )
    yield Check(
        "data.beneficial",
        "Every feature is beneficial",
        (stage_report("evaluate", paths.ABLATION.as_posix(), _check_ablation),),
    )
    yield Check(
        "data.cost",
        "No feature costs too much",
        (Evidence("cost of features", _verify_cost, "`make run`"), attack("slow feature")),
    )
    yield Check(
        "data.requirements",
        "Features follow the rules for what a model may use",
        (
            Evidence("rules for columns", _verify_requirements, "role `ignored` in contract.yaml, then `make run`"),
            attack("forbidden column"),
        ),
    )
    yield Check(
        "data.privacy",
        "Privacy is controlled in the whole pipeline",
        (
            stage_report("validate", paths.PRIVACY.as_posix(), _check_privacy),
            Evidence("search of files", _verify_files, "delete the file and what wrote the value"),
            Evidence("erased entities", _verify_erased, "`make log-erase KEY=`, and erase it at the source"),
            attack("personal data"),
        ),
    )
    yield Check("data.new_feature", "A new feature can be added quickly", (attack("new feature"),))
    yield Check(
        "data.feature_tests",
        "All code of features is tested",
        (attack("feature code", _check_tested_features),),
    )


CHECKS = tuple(_list_checks())
