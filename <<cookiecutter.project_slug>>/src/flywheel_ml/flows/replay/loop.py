"""The loop of a replay: send a period, monitor it, decide, retrain, promote, and begin the next one."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows import monitoring
from flywheel_ml.flows.bundles import open_champion
from flywheel_ml.flows.progress import Progress
from flywheel_ml.flows.replay.context import ReplayContext, Stopwatch
from flywheel_ml.flows.replay.steps import learning, measuring
from flywheel_ml.flows.replay.steps.deciding import apply_policy
from flywheel_ml.flows.replay.steps.promotion import Promoter
from flywheel_ml.flows.replay.steps.sending import Sender, Sent
from flywheel_ml.flows.replay.steps.server import run_server
from flywheel_ml.flows.replay.workspace import Workspace
from flywheel_ml.monitoring.quality import DECIDING_METRIC
from flywheel_ml.monitoring.replay import summary
from flywheel_ml.monitoring.replay.result import Decided, PeriodResult, ReplayResult, Retrained
from flywheel_ml.utils.threads import count_threads


def replay(project: Project, settings: Settings, workspace: Workspace, progress: Progress) -> ReplayResult:
    """Train on the first periods, then live through the others one by one.

    Raises:
        ProjectError: a step failed.
    """
    start = time.perf_counter()
    context = ReplayContext.begin(project, settings, workspace, progress)
    first = learning.train_first(context)
    _, frozen = open_champion(project, settings)
    with run_server(project.package, workspace.folder / "server.txt") as client:
        sender = Sender(context, client, first, frozen)
        player = Player(context, sender, Promoter(context, client))
        periods = tuple(player.play(at) for at in context.timeline.replayed)
    timeline, task = context.timeline, context.contract.task
    answers = measuring.concatenate(player.answers)
    level = context.params.monitor.confidence_level
    return ReplayResult(
        at=datetime.now(UTC),
        name=context.contract.name,
        target=context.contract.target.name,
        task=task,
        metric=DECIDING_METRIC[task],
        confidence=level,
        commit=workspace.request.commit,
        has_edits=workspace.request.has_edits,
        trained_on=(timeline.periods[0].label, timeline.periods[timeline.trained - 1].label),
        first=first,
        periods=periods,
        difference=None if answers is None else measuring.compare(task, answers, level),
        compared=player.compared,
        agreed=player.agreed,
        label_delay=f"{context.replay.label_delay_parts} of {context.replay.parts} parts of a period",
        seconds=round(time.perf_counter() - start, 1),
        cores=count_threads(),
    )


class Player:
    """Plays one period after the other.

    Args:
        context: of the replay.
        sender: sends rows and labels.
        promoter: brings a retrained version into service.

    Attributes:
        answers: of all parts so far.
        compared, agreed: see `Sent`.
    """

    def __init__(self, context: ReplayContext, sender: Sender, promoter: Promoter) -> None:
        self.answers: list[measuring.Answers] = []
        self.compared = self.agreed = 0
        self._context = context
        self._sender = sender
        self._promoter = promoter
        self._waiting: dict[int, list[tuple[str, Any]]] = {}

    def play(self, at: int) -> PeriodResult:
        """Send, monitor, decide and, if the policy says so, retrain."""
        context, stopwatch, period = self._context, Stopwatch(), self._context.timeline.get_period(at)
        with context.progress.step(period.label, "rows arrive") as step:
            since, sent = datetime.now(UTC), self._send(at, stopwatch)
            canary, promoted = self._promoter.take_events()
            with stopwatch.time("monitor"):
                watched = monitoring.monitor_window(context.project, context.settings, context.params, since=since)
            now = context.timeline.list_parts(at)[-1]
            with stopwatch.time("decide"):
                params = self._promoter.restrain(context.params)
                is_last = at == context.timeline.replayed[-1]
                retrain = None if is_last else lambda: self._retrain(now, stopwatch)
                carried = apply_policy(period.label, params, watched.result, retrain)
            error = carried.error or self._promoter.begin(carried.retrained, stopwatch)
            found = PeriodResult(
                label=period.label,
                start=period.start,
                end=period.end,
                versions=tuple(dict.fromkeys(one.version for one in sent)),
                **self._measure(sent),
                verdict=watched.result.verdict,
                headline=watched.result.headline,
                drifted=watched.result.drift.drifted,
                decided=tuple(
                    Decided(finding=one.finding, action=one.action, reason=one.reason) for one in carried.decisions
                ),
                retrained=carried.retrained,
                retraining_error=error,
                canary=canary,
                promoted=promoted,
                seconds=_subtract(stopwatch),
            )
            step.note = summary.describe_period(found, DECIDING_METRIC[context.contract.task])
        return found

    def _send(self, at: int, stopwatch: Stopwatch) -> list[Sent]:
        """Send the parts of a period, deliver the labels that are due after each, and look at the canary."""
        context, found = self._context, []
        for part in context.timeline.list_parts(at):
            if (sent := self._sender.send(part, stopwatch)) is not None:
                found.append(sent)
                self._waiting[part] = sent.labels
            due = context.timeline.find_labelled_part(part)
            for one in sorted(waiting for waiting in self._waiting if waiting <= due):
                self._sender.deliver(self._waiting.pop(one), stopwatch)
            self._promoter.look(stopwatch)
        return found

    def _measure(self, sent: list[Sent]) -> Mapping[str, Any]:
        self.answers += [one.answers for one in sent]
        self.compared += sum(one.compared for one in sent)
        self.agreed += sum(one.agreed for one in sent)
        task, level = self._context.contract.task, self._context.params.monitor.confidence_level
        answers = measuring.concatenate([one.answers for one in sent])
        counts: dict[str, Any] = {name: sum(getattr(one, name) for one in sent) for name in ("api_rows", "rejected")}
        counts["rejection"] = next((one.rejection for one in sent if one.rejection), "")
        if answers is None:
            nothing = dict.fromkeys(("frozen", "live", "difference"))
            return {"rows": 0, "labelled": 0, **counts, **nothing}
        return {
            "rows": sum(one.rows for one in sent),
            "labelled": len(answers.truth),
            **counts,
            "frozen": measuring.measure(task, answers.truth, answers.frozen, level),
            "live": measuring.measure(task, answers.truth, answers.live, level),
            "difference": measuring.compare(task, answers, level),
        }

    def _retrain(self, now: int, stopwatch: Stopwatch) -> Retrained:
        with stopwatch.time("retrain"):
            return learning.retrain(self._context, now)


def _subtract(stopwatch: Stopwatch) -> dict[str, float]:
    """Deciding includes retraining, which has seconds of its own."""
    found = stopwatch.round()
    found["decide"] = round(max(0.0, found.get("decide", 0.0) - found.get("retrain", 0.0)), 2)
    return found
