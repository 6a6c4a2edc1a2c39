"""The seven tests of infrastructure."""

from collections.abc import Iterator, Mapping

from flywheel_ml.core import paths
from flywheel_ml.ml_test_score.evidence import Check, Evidence, Finding, attack
from flywheel_ml.ml_test_score.facts import LOCKS, Facts

MAX_ROLLBACK_SECONDS = 10.0


def _verify_locks(facts: Facts) -> Finding:
    for path in LOCKS:
        if path.as_posix() not in facts.pipeline.locks:
            return Finding(False, f"{path} is missing", path.as_posix())
    where = (", ".join(facts.pipeline.locks), min(facts.pipeline.locks.values()))
    if facts.pipeline.outdated:
        name, reason = next(iter(facts.pipeline.outdated.items()))
        return Finding(False, f"{name} is out of date: {reason}", *where)
    return Finding(True, "data, code, parameters and libraries are those of the locks", *where)


def _check_estimator(facts: Facts, figures: Mapping[str, str | float]) -> str:
    trained = facts.model.manifest.estimator if facts.model.manifest else "none"
    tested = [key.removeprefix("estimator ") for key in figures if key.startswith("estimator ")]
    return "" if trained in tested else f"the trained estimator '{trained}' is not among the tested ones"


def _verify_champion(facts: Facts) -> Finding:
    champion = facts.model.champion
    if champion is None:
        return Finding(False, "no version is served", "var/serving")
    name = f"version {champion.version}"
    if champion.problem or champion.refusal:
        return Finding(False, f"{name}: {champion.problem or champion.refusal}", "var/serving")
    return Finding(True, f"{name} passed its gates, is champion in the registry, and is intact", "var/serving")


def _verify_background(facts: Facts) -> Finding:
    rows = facts.model.background_rows
    text = f"the bundle has {rows} rows to explain predictions with"
    return Finding(rows > 0, facts.model.problem or text, f"{paths.BUNDLE}/background.json", facts.model.at)


def _check_drill(_: Facts, figures: Mapping[str, str | float]) -> str:
    seconds = float(figures.get("rollback_seconds", MAX_ROLLBACK_SECONDS + 1))
    return "" if seconds <= MAX_ROLLBACK_SECONDS else f"the rollback took {seconds:.1f} s"


def _list_checks() -> Iterator[Check]:
    yield Check(
        "infrastructure.reproducible",
        "Training is reproducible",
        (Evidence("locks", _verify_locks, "`make run`"), attack("unseeded training")),
    )
    yield Check(
        "infrastructure.specification",
        "The specification of the model is unit tested",
        (attack("estimator", _check_estimator),),
    )
    yield Check("infrastructure.integration", "The whole pipeline is integration tested", (attack("whole loop"),))
    yield Check(
        "infrastructure.validated",
        "Quality is validated before a model serves",
        (Evidence("champion", _verify_champion, "`make run`"), attack("gate"), attack("tampered bundle")),
    )
    yield Check(
        "infrastructure.debuggable",
        "A single prediction can be debugged",
        (
            Evidence(
                "background rows", _verify_background, "`explain.background_rows` in params.yaml, then `make run`"
            ),
            attack("unexplained prediction"),
        ),
    )
    yield Check(
        "infrastructure.canary",
        "Models go through a canary before they serve everything",
        (attack("operator missing in the runtime"),),
    )
    yield Check(
        "infrastructure.rollback",
        "Serving can be rolled back",
        (attack("rollback drill", _check_drill),),
    )


CHECKS = tuple(_list_checks())
