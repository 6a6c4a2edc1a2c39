"""What a model must meet before it may be promoted. A new gate is one function and one row in `GATES`."""

import math
from collections.abc import Callable
from typing import NamedTuple

from ..bundle import Manifest
from ..params import GateParams


class Candidate(NamedTuple):
    """What the gates look at.

    `champion_roc_auc` is the champion's ROC AUC on the candidate's own test rows; None where there is no
    champion. Where there is one that cannot predict those rows, `champion_problem` says why.
    """

    manifest: Manifest
    champion_roc_auc: float | None = None
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
    """ROC AUC on the test rows reaches an absolute floor."""
    found = measure(candidate, "test", "roc_auc")
    return found >= params.roc_auc_floor, f"ROC AUC {found:.4f}, floor {params.roc_auc_floor:g}"


def beats_trivial(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """Log loss is lower than that of always answering the training prior, by a margin."""
    gain = measure(candidate, "trivial", "log_loss") - measure(candidate, "test", "log_loss")
    return gain >= params.log_loss_gain_over_trivial, (
        f"log loss gain over the prior {gain:+.4f}, wanted {params.log_loss_gain_over_trivial:+g}"
    )


def beats_linear(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """ROC AUC is higher than the linear baseline's, by a margin; a linear model need only equal it."""
    gain = measure(candidate, "test", "roc_auc") - measure(candidate, "linear", "roc_auc")
    return gain >= params.roc_auc_gain_over_linear, (
        f"ROC AUC {gain:+.4f} against the linear baseline, wanted {params.roc_auc_gain_over_linear:+g}"
    )


def keeps_up_with_champion(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """ROC AUC is not below the champion's on the same rows, beyond a margin."""
    if candidate.champion_problem:
        return False, f"the champion cannot be compared: {candidate.champion_problem}"
    if candidate.champion_roc_auc is None:
        return True, "there is no champion yet"
    found = measure(candidate, "test", "roc_auc")
    champion = _finite(candidate.champion_roc_auc, "the champion's roc_auc")
    return champion - found <= params.roc_auc_loss_to_champion, (
        f"ROC AUC {found:.4f}, the champion's on the same rows {champion:.4f}, "
        f"allowed loss {params.roc_auc_loss_to_champion:g}"
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
