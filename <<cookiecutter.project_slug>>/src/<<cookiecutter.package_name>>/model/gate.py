"""What a model must meet before it may be promoted. A new gate is one function and one row in `GATES`."""

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


Gate = Callable[[Candidate, GateParams], tuple[bool, str]]


def floor(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """ROC AUC on the test rows reaches an absolute floor."""
    found = candidate.manifest.metrics["test"]["roc_auc"]
    return found >= params.roc_auc_floor, f"ROC AUC {found:.4f}, floor {params.roc_auc_floor:g}"


def beats_trivial(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """Log loss is lower than that of always answering the training prior, by a margin."""
    metrics = candidate.manifest.metrics
    gain = metrics["trivial"]["log_loss"] - metrics["test"]["log_loss"]
    return gain >= params.log_loss_gain_over_trivial, (
        f"log loss better than the prior's by {gain:.4f}, wanted {params.log_loss_gain_over_trivial:g}"
    )


def beats_linear(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """ROC AUC is higher than the linear baseline's, by a margin; a linear model need only equal it."""
    metrics = candidate.manifest.metrics
    gain = metrics["test"]["roc_auc"] - metrics["linear"]["roc_auc"]
    return gain >= params.roc_auc_gain_over_linear, (
        f"ROC AUC {gain:+.4f} against the linear baseline, wanted {params.roc_auc_gain_over_linear:+g}"
    )


def keeps_up_with_champion(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """ROC AUC is not below the champion's on the same rows, beyond a margin."""
    if candidate.champion_problem:
        return False, f"the champion cannot be compared: {candidate.champion_problem}"
    if candidate.champion_roc_auc is None:
        return True, "there is no champion yet"
    found = candidate.manifest.metrics["test"]["roc_auc"]
    loss = candidate.champion_roc_auc - found
    return loss <= params.roc_auc_loss_to_champion, (
        f"ROC AUC {found:.4f}, the champion's on the same rows {candidate.champion_roc_auc:.4f}, "
        f"allowed loss {params.roc_auc_loss_to_champion:g}"
    )


def parity(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """The bundle answers as scikit-learn does, on every test row."""
    found = candidate.manifest.parity
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
    """Every gate's answer, in the order of the table. A measure that is missing or not finite never passes."""
    return [_ask(name, gate, candidate, params) for name, gate in GATES.items()]


def _ask(name: str, gate: Gate, candidate: Candidate, params: GateParams) -> Check:
    try:
        passed, reason = gate(candidate, params)
    except KeyError as error:
        return Check(name, False, f"the evaluation has no {error}")
    return Check(name, bool(passed), reason)
