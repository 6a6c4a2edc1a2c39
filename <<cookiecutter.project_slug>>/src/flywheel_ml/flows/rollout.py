"""Rolls versions out from the registry to the serving folder: promotion, experiments, rollback and the audit log.

The registry holds the desired state: the champion's alias, and a plan of the running experiment. Serving folders follow
the registry, so any number of folders, each next to its servers, route alike. Every change has four steps: bundle,
registry, routing file, audit log. If a process is killed between two steps, the folder still serves, and repeating the
command completes the change.
"""

import json
import math
import os
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Never, Self, TypeVar

from pydantic import Field, model_validator

from flywheel_ml.core import bundle, serving_folder
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.serving_folder import BundleRef, Challenger, Change, Routing, Shadow
from flywheel_ml.core.settings import Settings
from flywheel_ml.experiments.ramp import Ramp
from flywheel_ml.flows.orchestration.engine import lock_project, task
from flywheel_ml.model.evaluation.gate import GateResult
from flywheel_ml.model.registration.registry import CHALLENGER, CHAMPION, Registry, Version
from flywheel_ml.model.registration.store import describe_error
from flywheel_ml.prediction_log import Reader
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ConfigError, GateRefusal, IntegrityError, ProjectError, PromotionConflict
from flywheel_ml.utils.files import read_json, remove_folder, remove_leftovers, replacing_folder, sha256_file
from flywheel_ml.utils.formatting import short_digest
from flywheel_ml.utils.process import get_user_name

Item = TypeVar("Item")

AUDIT_FILE = "audit.jsonl"
LOCK_TIMEOUT_SECONDS = 60
CHAMPION_CHANGES = ("champion", ROLLBACK := "rollback")
"""Values of `what` in the audit log for a change of champion."""
RENUMBERED = "renumbered"
"""Its value when the same champion gets another number, for example after the registry was lost."""
EXPERIMENT = "experiment"
"""Key of an entry of the audit log with the champion and the versions alongside it, if there are any."""


class Arm(config_model.StrictModel):
    """A version in an experiment, and its share of the keys; without a share it is a shadow."""

    version: str
    share: float | None = Field(default=None, gt=0, le=1)


class ExperimentPlan(config_model.StrictModel):
    """An experiment alongside the champion, as stored in the registry: one shadow, or challengers with their shares.

    With a ramp, it has one arm, whose share the canary controller changes. Plans of older versions have none.
    """

    champion: str
    arms: tuple[Arm, ...] = Field(min_length=1)
    salt: str
    since: str
    who: str
    why: str
    ramp: Ramp | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, content: Any) -> Any:
        """Accept a plan with one arm, as `dump` writes it."""
        if not isinstance(content, dict):
            return content
        if isinstance(content.get("ramp"), dict):
            # As JSON, where lists may become tuples and texts times; after this validator they may not.
            content = {**content, "ramp": Ramp.model_validate_json(json.dumps(content["ramp"]))}
        if "version" in content:
            arm = {"version": content["version"], "share": content.get("share")}
            return {**{key: value for key, value in content.items() if key not in arm}, "arms": (arm,)}
        arms = content.get("arms")
        return {**content, "arms": tuple(arms)} if isinstance(arms, list) else content

    def dump(self) -> dict[str, Any]:
        """Return the content for the registry; one arm as older versions of this package read it."""
        content = self.model_dump(mode="json", exclude=set() if self.ramp else {"ramp"})
        return {**content, **content.pop("arms")[0]} if len(self.arms) == 1 else content

    @property
    def versions(self) -> str:
        """The versions, separated by commas."""
        return ", ".join(arm.version for arm in self.arms)

    @property
    def is_shadow(self) -> bool:
        """Whether it is a shadow."""
        return self.arms[0].share is None

    @property
    def kind(self) -> str:
        """Kind of experiment: `shadow`, or the challengers with their shares."""
        shares = " + ".join(format_share(arm.share) for arm in self.arms if arm.share is not None)
        return "shadow" if self.is_shadow else f"challenger{'s' * (len(self.arms) > 1)} {shares}"

    def keeps_keys_of(self, other: Self) -> bool:
        """Whether each version keeps the keys that it had: all shares have grown or shrunk alike."""
        if [arm.version for arm in self.arms] != [arm.version for arm in other.arms]:
            return False
        pairs = [(arm.share, before.share) for arm, before in zip(self.arms, other.arms, strict=True)]
        ratios = [new / old for new, old in pairs if new is not None and old is not None]
        return len(ratios) == len(pairs) and math.isclose(min(ratios), max(ratios))


def start(
    registry: Registry, settings: Settings, number: str | None, share: float | None, why: str = "started"
) -> Routing:
    """Start an experiment with a version, by default the challenger; repeating the call has no further effect.

    Args:
        share: part of the traffic that the version answers, in (0, 1]. None makes it a shadow, which is only scored
            and logged. A new share for a running challenger keeps the entities it already answers; any other change
            starts a new experiment.
        why: reason for the audit log.

    Raises:
        ProjectError: there is no champion or no such version, another experiment is running, or the version is
            incompatible with the champion.
        GateRefusal: a gate refused the version.
    """
    return start_arms(registry, settings, [(number, share)], why)


def start_arms(
    registry: Registry,
    settings: Settings,
    arms: Sequence[tuple[str | None, float | None]],
    why: str = "started",
) -> Routing:
    """Start an experiment with several versions at once; repeating the call has no further effect.

    Args:
        arms: version and share of each, as for `start`; one of several has a number and a share. If all shares change
            by the same factor, each version keeps the keys it had; any other change starts a new experiment.
        why: reason for the audit log.

    Raises:
        ConfigError: a version is listed twice, or shares add up to more than 1.
        ProjectError: as `start`.
        GateRefusal: as `start`.
    """
    folder = settings.serving_folder
    with _lock_rollout(folder):
        champion = _get_champion(registry)
        routing = _set_serving_champion(registry, champion, settings, why="synced")
        running = _read_plan(registry, champion)
        plan = ExperimentPlan(
            champion=champion.number,
            arms=_order_arms(
                [Arm(version=one or _choose_version(registry, running), share=share) for one, share in arms], running
            ),
            salt=secrets.token_hex(16),
            since=_now(),
            who=get_user_name(),
            why=why,
        )
        _check_arms(plan)
        if running and _is_other_experiment(running, plan):
            kind = "a canary" if running.ramp else "an experiment"
            raise ProjectError(
                f"{kind} with version{'s' * (len(running.arms) > 1)} {running.versions} ({running.kind}) is running "
                f"since {running.since}; end it first: rollout abort, or rollout promote"
            )
        if running is None or running.arms != plan.arms:
            for arm in plan.arms:
                _check_candidate(registry, folder, champion, arm.version)
            if running and plan.keeps_keys_of(running):
                plan = plan.model_copy(update={"salt": running.salt})
            if len(plan.arms) == 1:
                registry.set_challenger(plan.arms[0].version)
            registry.set_plan(plan.dump())
            running = plan
        return _apply_plan(registry, routing, running, settings, why)


def read_plan(registry: Registry) -> ExperimentPlan | None:
    """Read the plan of the running experiment; None if there is none."""
    champion = registry.find_alias(CHAMPION)
    return _read_plan(registry, champion) if champion else None


def start_ramp(registry: Registry, settings: Settings, number: str | None, ramp: Ramp) -> Routing:
    """Start a ramp with a version, by default the challenger.

    Raises:
        ProjectError, GateRefusal: as `start`; also if any experiment is running.
    """
    folder, share = settings.serving_folder, ramp.current.share
    with _lock_rollout(folder):
        champion = _get_champion(registry)
        routing = _set_serving_champion(registry, champion, settings, why="synced")
        if running := _read_plan(registry, champion):
            raise ProjectError(
                f"an experiment with version {running.versions} ({running.kind}) is running since {running.since}; "
                "end it first: make abort, or make promote"
            )
        chosen = number or _get_challenger(registry)
        _check_candidate(registry, folder, champion, chosen)
        plan = ExperimentPlan(
            champion=champion.number,
            arms=(Arm(version=chosen, share=share),),
            salt=secrets.token_hex(16),
            since=_now(),
            who=get_user_name(),
            why="canary",
            ramp=ramp,
        )
        registry.readmit(chosen)
        registry.set_challenger(chosen)
        registry.set_plan(plan.dump())
        return _apply_plan(registry, routing, plan, settings, plan.why)


def advance_ramp(registry: Registry, settings: Settings, plan: ExperimentPlan, ramp: Ramp, why: str) -> Routing:
    """Change the share of a running experiment to that of its ramp's step.

    Raises:
        PromotionConflict: the registry's plan is no longer `plan`.
    """
    with _lock_rollout(settings.serving_folder):
        champion = _get_champion(registry)
        routing = _set_serving_champion(registry, champion, settings, why="synced")
        # A shadow's breaker may have opened; the first share begins with a new one.
        salt = secrets.token_hex(16) if plan.is_shadow else plan.salt
        arms = (plan.arms[0].model_copy(update={"share": ramp.current.share}),)
        changes = {"arms": arms, "salt": salt, "since": _now(), "who": get_user_name(), "why": why}
        after = plan.model_copy(update={**changes, "ramp": ramp})
        with registry.hold_lock():
            if _read_plan(registry, champion) != plan:
                raise PromotionConflict("the plan of the experiment was changed in the meantime; look again")
            registry.set_plan(after.dump())
        return _apply_plan(registry, routing, after, settings, why)


def abort(registry: Registry, settings: Settings, why: str = "aborted") -> Routing:
    """End the experiment, so that the champion answers everything; repeating the call has no further effect.

    Raises:
        ProjectError: there is no champion.
    """
    with _lock_rollout(settings.serving_folder):
        champion = _get_champion(registry)
        registry.set_plan(None)
        routing = _set_serving_champion(registry, champion, settings, why)
        return _apply_plan(registry, routing, None, settings, why)


def promote(
    registry: Registry, settings: Settings, number: str | None, override: str = "", why: str = "promoted"
) -> Version:
    """Make a version champion and serve it: by default the version in the experiment, else the challenger.

    Raises:
        ProjectError: there is no such version, a gate refused it, or someone else promoted in the meantime.
    """
    champion = registry.find_alias(CHAMPION)
    chosen = number or _choose_candidate(registry, champion, settings.serving_folder)
    expected = champion.number if champion else None
    with _lock_rollout(settings.serving_folder):
        # Fetch the bundle before setting the alias: a version whose bundle is unavailable must not become champion.
        _fetch(registry, registry.get_promotable(chosen, override), settings.serving_folder)
        version = registry.promote(chosen, expected, override)
        _set_serving_champion(registry, version, settings, override or why)
    return version


def rollback(registry: Registry, settings: Settings, why: str = "rolled back") -> Version:
    """Make the previous champion champion again, and serve it; a running experiment ends.

    A second rollback in a row has no effect, so that two people in a hurry do not roll forward. To return to an older
    version, promote it by number.

    Raises:
        ProjectError: the serving folder has no previous champion.
    """
    with _lock_rollout(settings.serving_folder):
        routing = serving_folder.read_routing(settings.serving_folder)
        if routing.previous is None or routing.champion is None:
            raise ProjectError("there is no previous champion to roll back to; `rollout status` lists the versions")
        _append_audit_entry(settings.serving_folder, routing)
        champion, last = registry.find_alias(CHAMPION), _find_champion_change(settings.serving_folder)
        if champion and champion.digest == routing.champion.digest and last and last["what"] == ROLLBACK:
            return champion
        former = _find_registered(registry, routing.previous)
        _fetch(registry, former, settings.serving_folder)
        version = registry.promote(former.number, routing.champion.version, override=why, rolls_back=True)
        _set_serving_champion(registry, version, settings, why, ROLLBACK)
    return version


def sync(registry: Registry, settings: Settings, why: str) -> Routing:
    """Bring the serving folder in line with the registry; safe to repeat, also after a crash.

    Raises:
        ProjectError: the registry has no champion.
        IntegrityError: the downloaded bundle differs from the registered one.
    """
    with _lock_rollout(settings.serving_folder):
        champion = _get_champion(registry)
        routing = _set_serving_champion(registry, champion, settings, why)
        return _apply_plan(registry, routing, _read_plan(registry, champion), settings, why)


def prune(registry: Registry, settings: Settings) -> None:
    """Remove the bundles of old versions, as every change of the serving folder also does."""
    with _lock_rollout(settings.serving_folder):
        if (routing := _read_routing(settings.serving_folder)) is not None:
            _prune(registry, settings, routing)


def recover(registry: Registry, settings: Settings) -> str:
    """Register the served champion again if the registry was lost, and make it champion.

    The next model is then compared with this champion instead of being the first in an empty registry.

    Returns:
        A sentence about what was done; empty if there was nothing to do.

    Raises:
        ProjectError: the served champion cannot be registered.
    """
    folder = settings.serving_folder
    if registry.find_alias(CHAMPION) or not (folder / serving_folder.ROUTING).is_file():
        return ""
    with _lock_rollout(folder):
        try:
            routing = serving_folder.read_routing(folder)
            if routing.champion is None or routing.name != registry.name:
                return ""
            version = _register_again(registry, folder, routing.champion, routing.previous)
        except ProjectError as error:
            raise ProjectError(
                f"the registry has no champion, and the served one cannot be registered again: {error}; "
                f"restore the registry from a backup, or move '{folder}' away to start without a champion"
            ) from None
        registry.promote(version.number, None, override="it served when the registry was lost")
    return (
        f"the registry was lost: version {routing.champion.version} still serves, and is registered as {version.number}"
    )


def sync_forever(
    connect: Callable[[], Registry], settings: Settings, seconds: float, log: Callable[[str], object]
) -> Never:
    """Sync every `seconds` seconds, forever; a failure is logged once and retried.

    Args:
        connect: opens the registry; called until it succeeds.
        log: called with a line whenever the state changes.
    """
    registry, logged = None, ""
    while True:
        try:
            registry = registry or connect()
            found = f"the serving folder holds {describe_routing(sync(registry, settings, why='synced'))}"
        except Exception as error:
            # An unavailable or inconsistent registry must not stop the current champion from serving.
            found = f"the serving folder is unchanged: {describe_error(error, settings)}"
        if found != logged:
            log(found)
        logged = found
        time.sleep(seconds)


def format_share(share: float) -> str:
    """Format a share as a percentage."""
    return f"{100 * share:.4g}%"


def describe_routing(routing: Routing) -> str:
    """Describe the versions that answer, in one line."""
    parts = [f"version {one.ref.version} for {format_share(one.share)} of the keys" for one in routing.challengers]
    if routing.shadow:
        parts.append(f"version {routing.shadow.ref.version} as shadow")
    return ", ".join([f"version {routing.champion.version if routing.champion else 'none'}", *parts])


def read_audit(folder: Path) -> list[dict[str, Any]]:
    """Read every change of the serving folder, oldest first: when, who, what, from, to, why."""
    path = folder / AUDIT_FILE
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    # A line that a crash cut off is skipped.
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def _lock_rollout(folder: Path) -> AbstractContextManager[None]:
    """Lock the serving folder: one process changes it at a time, others wait."""
    return lock_project(folder, "rollout", wait_seconds=LOCK_TIMEOUT_SECONDS)


def _register_again(registry: Registry, folder: Path, champion: BundleRef, previous: BundleRef | None) -> Version:
    """Register the champion, and the previous champion for rollback, in a registry that has lost them."""
    for ref in (previous, champion):
        if ref is None or (found := registry.find(ref.digest)):
            continue
        path = serving_folder.bundle_folder(folder, ref)
        try:
            bundle.verify(path, ref.digest)
        except IntegrityError:
            if ref == champion:
                raise
            continue
        lineage_path = path / bundle.LINEAGE
        lineage = {
            **(read_json(lineage_path) if lineage_path.is_file() else {}),
            "restored_from": f"serving folder, version {ref.version}",
        }
        served = GateResult("restored", passed=True, reason=f"version {ref.version} served when the registry was lost")
        found = registry.register(path, [served], {}, lineage, [])
    assert found is not None
    return found


def _find_registered(registry: Registry, ref: BundleRef) -> Version:
    """Find the version of a bundle in the serving folder, even if its number has changed."""
    if found := registry.find(ref.digest):
        return found
    raise ProjectError(
        f"the registry has no version {ref.version}, which the serving folder holds "
        f"(sha256 {short_digest(ref.digest)}…); promote another version"
    )


def _find_champion_change(folder: Path) -> dict[str, Any] | None:
    return next((entry for entry in reversed(read_audit(folder)) if entry.get("what") in CHAMPION_CHANGES), None)


def _get_champion(registry: Registry) -> Version:
    champion = registry.find_alias(CHAMPION)
    if champion is None:
        raise ProjectError("the registry has no champion; train a model that passes its gates")
    return champion


def _get_challenger(registry: Registry) -> str:
    challenger = registry.find_alias(CHALLENGER)
    if challenger is None:
        champion, versions = registry.find_alias(CHAMPION), registry.list_versions()
        known = [f"version {champion.number} is champion"] if champion else []
        known += [f"version {one.number} was rolled back by {one.rolled_back}" for one in versions if one.rolled_back]
        details = f": {', '.join(known)}" if known else ""
        raise ProjectError(f"there is no challenger{details}; name a version, or train one that passes its gates")
    return challenger.number


def _choose_candidate(registry: Registry, champion: Version | None, folder: Path) -> str:
    """Choose the version to promote if none was given."""
    if champion and (running := _read_plan(registry, champion)):
        if len(running.arms) > 1:
            raise ProjectError(
                f"an experiment with versions {running.versions} is running; name the one to promote, such as "
                f"`rollout promote {running.arms[0].version}` (make: VERSION={running.arms[0].version})"
            )
        return running.arms[0].version
    if champion and registry.find_alias(CHALLENGER) is None:
        routing, entries = _read_routing(folder), read_audit(folder)
        serves_champion = routing and routing.champion and routing.champion.digest == champion.digest
        if not serves_champion or (routing and entries and entries[-1]["at"] != routing.updated_at):
            return champion.number  # Complete a promotion that a crash interrupted.
    return _get_challenger(registry)


def _choose_version(registry: Registry, running: ExperimentPlan | None) -> str:
    """Choose the version of an experiment with one version if none was given."""
    return running.arms[0].version if running and len(running.arms) == 1 else _get_challenger(registry)


def _order_arms(arms: Sequence[Arm], running: ExperimentPlan | None) -> tuple[Arm, ...]:
    """Return the arms in the order of the running experiment, on which the assignment of keys depends."""
    places = {arm.version: at for at, arm in enumerate(running.arms)} if running else {}
    return tuple(sorted(arms, key=lambda arm: places.get(arm.version, len(places))))


def _is_other_experiment(running: ExperimentPlan, asked: ExperimentPlan) -> bool:
    """Whether the running experiment has other versions, or is a canary, which sets its shares itself."""
    if running.ramp is not None:
        return running.arms != asked.arms
    return {arm.version for arm in running.arms} != {arm.version for arm in asked.arms}


def _check_arms(plan: ExperimentPlan) -> None:
    versions = [arm.version for arm in plan.arms]
    if twice := [version for version in versions if versions.count(version) > 1]:
        raise ConfigError(f"version {twice[0]} is listed twice; each version of an experiment has one share")
    if len(plan.arms) > 1 and any(arm.share is None for arm in plan.arms):
        raise ConfigError("a shadow runs alone; give each of several versions a share of the traffic")
    if (total := math.fsum(arm.share or 0.0 for arm in plan.arms)) > 1 + serving_folder.SHARE_TOLERANCE:
        raise ConfigError(f"the shares add up to {format_share(total)}; together they may be 100% at most")


def _read_plan(registry: Registry, champion: Version) -> ExperimentPlan | None:
    """Read the plan for this champion; a plan made for another champion is ignored."""
    content = registry.get_plan()
    plan = config_model.parse(content, ExperimentPlan, name="the registry's rollout plan") if content else None
    return plan if plan and plan.champion == champion.number else None


def _check_candidate(registry: Registry, folder: Path, champion: Version, number: str) -> None:
    """Raise if the version cannot take part in an experiment, before anything changes."""
    version = registry.get(number)
    if version.number == champion.number:
        raise ProjectError(f"version {number} is already champion; give another version, or train one")
    if not version.passed:
        raise GateRefusal(f"version {number} was refused ({version.refusal}); it cannot be used in an experiment")
    paths = [serving_folder.bundle_folder(folder, _fetch(registry, one, folder)) for one in (champion, version)]
    if incompatibility := serving_folder.find_incompatibility(
        *(Contract.load(path / bundle.CONTRACT, accept_renamed=True) for path in paths)
    ):
        raise ProjectError(f"version {number} cannot run alongside version {champion.number}: {incompatibility}")


def _fetch(registry: Registry, version: Version, folder: Path) -> BundleRef:
    remove_leftovers(folder, folder / serving_folder.BUNDLES)
    ref = BundleRef(version=version.number, digest=version.digest)
    path = serving_folder.bundle_folder(folder, ref)
    if not _is_intact(path, version.digest):
        task("fetch bundle", _download, registry, version, path)
    return ref


def _set_serving_champion(
    registry: Registry, version: Version, settings: Settings, why: str, what: str = CHAMPION_CHANGES[0]
) -> Routing:
    """Route all traffic to a version; if it is a new champion, a running experiment ends."""
    folder = settings.serving_folder
    ref = _fetch(registry, version, folder)
    before = _read_routing(folder)
    if before and before.champion == ref:
        _append_audit_entry(folder, before)
        return before
    previous = before.champion if before else None
    if before and previous and previous.digest == ref.digest:
        # The same model under another number: a rollback still returns to the same previous champion.
        what, previous = RENUMBERED, before.previous
    after = Routing(
        name=registry.name,
        champion=ref,
        previous=previous,
        updated_at=_now(),
        reason=why,
        change=Change(
            who=get_user_name(), what=what, before=_get_number(before.champion if before else None), after=ref.version
        ),
    )
    return _write_routing(registry, settings, after)


def _get_number(ref: BundleRef | None) -> str | None:
    return ref.version if ref else None


def _apply_plan(
    registry: Registry, routing: Routing, plan: ExperimentPlan | None, settings: Settings, why: str
) -> Routing:
    """Route traffic to the versions of the plan alongside the champion; without a plan, to the champion alone."""
    challengers, shadow = [], None
    for arm in plan.arms if plan else ():
        assert plan is not None
        ref = _fetch(registry, registry.get(arm.version), settings.serving_folder)
        if arm.share is None:
            shadow = Shadow(ref=ref, salt=plan.salt, since=plan.since)
        else:
            challengers.append(Challenger(ref=ref, share=arm.share, salt=plan.salt, since=plan.since))
    if (routing.challengers, routing.shadow) == (tuple(challengers), shadow):
        _append_audit_entry(settings.serving_folder, routing)
        return routing
    change = Change(
        who=plan.who if plan else get_user_name(),
        what=plan.kind if plan else "experiment",
        before=", ".join(one.ref.version for one in routing.experiments) or None,
        after=plan.versions if plan else None,
    )
    facts = {"challengers": tuple(challengers), "shadow": shadow, "updated_at": _now(), "change": change}
    return _write_routing(registry, settings, routing.model_copy(update={**facts, "reason": plan.why if plan else why}))


def _write_routing(registry: Registry, settings: Settings, after: Routing) -> Routing:
    # Bundle first, then the routing file, then the audit log: after a crash in between, the folder still serves.
    serving_folder.write_routing(settings.serving_folder, after)
    _append_audit_entry(settings.serving_folder, after)
    _prune(registry, settings, after)
    return after


def _download(registry: Registry, version: Version, path: Path) -> None:
    with replacing_folder(path) as part:
        registry.download(version, part)
        bundle.verify(part, version.digest)


def _is_intact(path: Path, digest: str) -> bool:
    try:
        bundle.verify(path, digest)
    except IntegrityError:
        return False
    return True


def _read_routing(folder: Path) -> Routing | None:
    """Read the routing; None if it cannot be read, because it is then written again."""
    try:
        return serving_folder.read_routing(folder)
    except ProjectError:
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _append_audit_entry(folder: Path, routing: Routing) -> None:
    """Append the change that led to `routing` to the audit log, unless it is already there."""
    entries = read_audit(folder)
    if routing.change is None or (entries and entries[-1]["at"] == routing.updated_at):
        return
    change = routing.change
    entry: dict[str, Any] = {
        "at": routing.updated_at,
        "who": change.who,
        "what": change.what,
        "from": change.before,
        "to": change.after,
        "why": routing.reason,
    }
    if routing.champion and routing.experiments:
        entry[EXPERIMENT] = {
            "champion": routing.champion.model_dump(),
            "arms": [{**one.ref.model_dump(), "share": getattr(one, "share", None)} for one in routing.experiments],
        }
    path = folder / AUDIT_FILE
    ends_mid_line = path.is_file() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as stream:
        stream.write("\n" * ends_mid_line + json.dumps(entry, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _prune(registry: Registry, settings: Settings, routing: Routing) -> None:
    """Remove the bundles of old versions from the folder and a local artifact store; `keep_versions` stay in each.

    Bundles in use stay, and so do those that the prediction log refers to. If the log cannot be read, all stay.
    """
    tried = [one.ref for one in routing.experiments]
    used = {ref.digest for ref in (routing.champion, routing.previous, *tried) if ref}
    used |= {found.digest for alias in (CHAMPION, CHALLENGER) if (found := registry.find_alias(alias))}
    log = Reader(settings.prediction_log)
    folders: dict[Path, tuple[str, str]] = {}
    for path in settings.serving_folder.joinpath(serving_folder.BUNDLES).glob("[!.]*"):
        manifest = path / bundle.MANIFEST
        digest = sha256_file(manifest) if manifest.is_file() else ""
        folders[path] = path.name.removesuffix(f"-{short_digest(digest)}"), digest
    newest = sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)
    for path in _find_removable(newest, folders.__getitem__, used, settings.keep_versions, log):
        remove_folder(path)
    versions = registry.list_versions()
    for version in _find_removable(versions, lambda one: (one.number, one.digest), used, settings.keep_versions, log):
        registry.prune(version)


def _find_removable(
    newest: Sequence[Item],
    model: Callable[[Item], tuple[str, str]],
    used: Collection[str],
    keep_versions: int,
    log: Reader,
) -> list[Item]:
    """Find the items that may be removed; `model` returns the version and the digest of each."""
    free = [one for one in newest if model(one)[1] not in used]
    old = free[max(0, keep_versions - (len(newest) - len(free))) :]
    try:
        return [one for one in old if not log.refers_to(*model(one))]
    except ProjectError:
        return []
