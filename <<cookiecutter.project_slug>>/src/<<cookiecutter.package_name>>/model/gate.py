"""What a model must meet before it may be promoted. A new gate is one function and one row in `GATES`."""

import math
from collections.abc import Callable
from typing import NamedTuple

from .. import words
from ..bundle import Manifest
from ..metrics import HEADLINE, LOSS
from ..params import LINEAR, GateParams


class Candidate(NamedTuple):
    """What the gates look at.

    `champion` is the champion's headline measure (ROC AUC for classes, R² for numbers) on the candidate's own test
    rows; None where there is no champion. Where there is one that cannot predict those rows, `champion_problem`
    says why.
    """

    manifest: Manifest
    champion: float | None = None
    champion_problem: str = ""


class Check(NamedTuple):
    """The answer of one gate: whether it lets the model pass, and the figures that decided."""

    gate: str
    passed: bool
    reason: str


class Unmeasured(Exception):
    """A measure that a gate needs is absent or not finite; the gate then refuses."""


Gate = Callable[[Candidate, GateParams], tuple[bool, str]]


def floor(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """The headline measure on the test rows reaches an absolute floor."""
    name, found = _headline(candidate, "test")
    return found >= params.floor, f"{name} {found:.4f}, floor {params.floor:g}"


def beats_trivial(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """The loss is lower, by a share of it, than that of always answering what the training rows are on average."""
    loss = LOSS[candidate.manifest.task]
    trivial, found = measure(candidate, "trivial", loss), measure(candidate, "test", loss)
    skill = 1 - found / trivial if trivial else 0.0
    return skill >= params.skill_over_trivial, (
        f"{words.MEASURES[loss]} {found:.4g} against {trivial:.4g} of the prior, {skill:+.1%} better, "
        f"wanted {params.skill_over_trivial:+.1%}"
    )


def beats_linear(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """The headline measure is higher than the linear baseline's, by a margin; a linear model need only equal it."""
    (name, found), (_, linear) = _headline(candidate, "test"), _headline(candidate, "linear")
    passed = found - linear >= params.gain_over_linear
    advice = "" if passed else f"; `train.estimator: {LINEAR[candidate.manifest.task]}` in params.yaml would be better"
    return passed, (
        f"{name} {found - linear:+.4f} against the linear baseline, wanted {params.gain_over_linear:+g}{advice}"
    )


def keeps_up_with_champion(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """The headline measure is not below the champion's on the same rows, beyond a margin."""
    if candidate.champion_problem:
        return False, f"the champion cannot be compared: {candidate.champion_problem}"
    if candidate.champion is None:
        return True, "there is no champion yet"
    name, found = _headline(candidate, "test")
    champion = _finite(candidate.champion, f"the champion's {name}")
    return champion - found <= params.loss_to_champion, (
        f"{name} {found:.4f}, the champion's on the same rows {champion:.4f}, allowed loss {params.loss_to_champion:g}"
    )


def parity(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """The bundle answers as scikit-learn does, on every test row."""
    found = _finite(candidate.manifest.parity, "parity")
    return found <= params.parity_tolerance, (
        f"largest difference to scikit-learn {found:.2g}, allowed {params.parity_tolerance:g}"
    )


GATES: dict[str, Gate] = {
    "metric floor": floor,
    "beats the trivial baseline": beats_trivial,
    "beats the linear baseline": beats_linear,
    "keeps up with the champion": keeps_up_with_champion,
    "same answers as scikit-learn": parity,
}


def judge(candidate: Candidate, params: GateParams) -> list[Check]:
    """Every gate's answer, in the order of the table. A measure that is absent or not finite never passes."""
    return [_ask(name, gate, candidate, params) for name, gate in GATES.items()]


def measure(candidate: Candidate, part: str, name: str) -> float:
    """A finite measure of the evaluation, for example the `roc_auc` of `test`.

    Raises:
        Unmeasured: there is none.
    """
    found = candidate.manifest.metrics.get(part, {}).get(name)
    if found is None:
        raise Unmeasured(f"the evaluation has no {part} {name}")
    return _finite(found, f"{part} {name}")


def _headline(candidate: Candidate, part: str) -> tuple[str, float]:
    """The headline measure of the task: its name in words, and its value."""
    name = HEADLINE[candidate.manifest.task]
    return words.MEASURES[name], measure(candidate, part, name)


def _finite(found: float, name: str) -> float:
    if not math.isfinite(found):
        raise Unmeasured(f"{name} is {found}")
    return found


def _ask(name: str, gate: Gate, candidate: Candidate, params: GateParams) -> Check:
    try:
        passed, reason = gate(candidate, params)
    except Unmeasured as unmeasured:
        passed, reason = False, str(unmeasured)
    return Check(name, bool(passed), reason)
