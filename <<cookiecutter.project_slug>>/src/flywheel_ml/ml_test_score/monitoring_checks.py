"""The seven tests of monitoring."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from flywheel_ml.core import paths
from flywheel_ml.flows import schema_changes
from flywheel_ml.ml_test_score.evidence import Check, Evidence, Finding, attack
from flywheel_ml.ml_test_score.facts import Facts
from flywheel_ml.ml_test_score.traffic import LATEST
from flywheel_ml.model.evaluation.compute import find_regressions
from flywheel_ml.monitoring.result import Result

DEFAULT_MAX_AGE_DAYS = 90.0
"""Limit of a model's age if `policy.max_model_age_days` sets none."""
MAX_MONITORING_AGE = timedelta(days=7)
"""How old the latest monitoring of the log may be."""


def _verify_schema(facts: Facts) -> Finding:
    path = schema_changes.REPORT.as_posix()
    report, ingested = facts.pipeline.reports.get(path), facts.pipeline.reports.get("reports/ingest.json")
    if report is None or ingested is None:
        return Finding(False, f"{path} is missing or damaged", path)
    if outdated := facts.pipeline.outdated.get("ingest"):
        return Finding(False, f"stage ingest is out of date ({outdated})", path, report.at)
    if report.content.get("columns") != ingested.content.get("columns"):
        return Finding(False, "the upstream schema was not compared since the last ingest", path, report.at)
    changed = [name for kind in ("added", "removed", "retyped") for name in report.content.get(kind) or ()]
    text = f"the upstream schema of {len(report.content['columns'])} columns was compared"
    return Finding(True, f"{text}: {len(changed)} changes were reported", path, report.at)


def _verify_libraries(facts: Facts) -> Finding:
    path = f"{paths.BUNDLE}/manifest.json"
    if facts.model.manifest is None:
        return Finding(False, facts.model.problem, path)
    for name, trained in facts.model.manifest.libraries.items():
        if (installed := facts.model.installed.get(name)) != trained:
            text = f"{name} is {installed}, the model was trained with {trained}"
            return Finding(False, text, path, facts.model.at)
    return Finding(True, "the installed libraries are those of the training", path, facts.model.at)


def _verify_inputs(facts: Facts) -> Finding | None:
    if not facts.traffic.rows:
        return None
    found = _find_result(facts)
    if isinstance(found, Finding):
        return found
    broken, drifted = found.violations, found.drift.drifted
    text = "the inputs in the log satisfy the contract and have not drifted"
    if found.drift.verdict == "insufficient data":
        text = f"the inputs in the log satisfy the contract; drift is not known: {found.drift.reason}"
    if broken:
        text = f"'{broken[0].column}' breaks the contract ({broken[0].rule})"
    elif drifted:
        text = f"'{drifted[0]}' has drifted"
    return Finding(not broken and not drifted, text, LATEST.as_posix(), found.at)


def _verify_skew(facts: Facts) -> Finding | None:
    if not facts.traffic.rows:
        return None
    if facts.traffic.skew is None:
        return Finding(False, facts.traffic.skew_problem, "prediction log")
    found = facts.traffic.skew
    rows = sum(found.compared.values())
    different = len({one.id for one in found.differences})
    return Finding(not different, f"{different} of {rows} replayed rows differ", "reports/skew.json")


def _verify_age(facts: Facts) -> Finding:
    champion, limit = facts.model.champion, facts.params.policy.max_model_age_days or DEFAULT_MAX_AGE_DAYS
    if champion is None or "trained_at" not in champion.lineage:
        return Finding(False, "no version is served, or the time of its training is unknown", "var/serving")
    trained = datetime.fromisoformat(champion.lineage["trained_at"])
    age = facts.now - trained
    text = f"version {champion.version} is {age / timedelta(days=1):.0f} days old, allowed {limit:g}"
    return Finding(age <= timedelta(days=limit), text, "var/serving", trained)


def _verify_stability(facts: Facts) -> Finding:
    measured, path = facts.model.measured, paths.MEASURED.as_posix()
    if measured is None or measured.digest != facts.model.digest:
        return Finding(False, "extreme inputs were not tried with this model", path)
    faults = measured.unstable
    text = faults[0] if faults else "extreme, infinite and missing inputs give finite predictions"
    return Finding(not faults, text, path, measured.at)


def _verify_compute(facts: Facts) -> Finding:
    baseline, current, measured = facts.model.baseline, facts.model.current, facts.model.measured
    path = paths.COMPUTE_BASELINE.as_posix()
    if measured is None or measured.digest != facts.model.digest:
        return Finding(False, "computing performance of this model was not measured", paths.MEASURED.as_posix())
    if baseline is None or current is None:
        return Finding(False, "there is no baseline, or nothing to compare with it", path)
    if baseline.key != current.key:
        return Finding(False, f"the baseline is of '{baseline.key}', the model of '{current.key}'", path)
    for name, figures in (("this run", current), ("the baseline", baseline)):
        if not figures.train_cpu_us or not figures.peak_mb:
            text = f"training time or memory of {name} is unknown, because stage train did not run"
            return Finding(False, text, path)
    worse = list(find_regressions(baseline, current, facts.params.monitor.max_compute_increase))
    text = worse[0] if worse else "latency, training and memory are within the limits of the baseline"
    return Finding(not worse, text, path)


def _verify_quality(facts: Facts) -> Finding | None:
    if not facts.traffic.rows:
        return None
    found = _find_result(facts)
    if isinstance(found, Finding):
        return found
    return Finding(found.verdict != "degraded", found.headline, LATEST.as_posix(), found.at)


def _find_result(facts: Facts) -> Result | Finding:
    """The latest monitoring of the log, if it is about the champion and recent; else why it does not count."""
    found, champion, path = facts.traffic.monitored, facts.model.champion, LATEST.as_posix()
    if found is None:
        return Finding(False, f"{facts.traffic.monitored_problem}", path)
    if champion is None or found.model.digest != champion.digest:
        served = f"version {champion.version} is champion" if champion else "no version is served"
        return Finding(False, f"the log was monitored for another model, {served}", path, found.at)
    if facts.now - found.at > MAX_MONITORING_AGE:
        text = f"the log was monitored {(facts.now - found.at).days} days ago, allowed {MAX_MONITORING_AGE.days}"
        return Finding(False, f"{text}", path, found.at)
    return found


def _list_checks() -> Iterator[Check]:
    yield Check(
        "monitoring.dependencies",
        "Changes of dependencies are reported",
        (
            Evidence("upstream schema", _verify_schema, "`make run`"),
            Evidence("libraries", _verify_libraries, "`make install`, then `make run`"),
            attack("changed dependency"),
        ),
    )
    yield Check(
        "monitoring.invariants",
        "Invariants of the data hold for served inputs",
        (
            attack("cents instead of dollars"),
            Evidence(
                "inputs in the log",
                _verify_inputs,
                "`make monitor`; if inputs broke the contract or drifted, fix the caller first",
            ),
        ),
    )
    yield Check(
        "monitoring.skew",
        "Training and serving compute the same features and values",
        (attack("skew"), Evidence("replay of the log", _verify_skew, "`make skew`")),
    )
    yield Check(
        "monitoring.staleness",
        "The served model is not too old",
        (Evidence("age", _verify_age, "`make retrain`, then `make promote`"),),
    )
    yield Check(
        "monitoring.stability",
        "The model is numerically stable",
        (Evidence("extreme inputs", _verify_stability, "`make run`"), attack("NaN")),
    )
    yield Check(
        "monitoring.compute",
        "Computing performance has not become worse",
        (
            Evidence("baseline", _verify_compute, "`make run`; delete compute_baseline.json to accept the new figures"),
            attack("creeping latency"),
        ),
    )
    yield Check(
        "monitoring.quality",
        "Prediction quality has not become worse",
        (
            attack("degraded quality"),
            Evidence(
                "quality in the log",
                _verify_quality,
                "`make monitor`; if quality dropped, `make retrain` or `make rollback`",
            ),
        ),
    )


CHECKS = tuple(_list_checks())
