"""Changes what serves: experiments, promotion, rollback."""

import secrets
from collections.abc import Sequence

from flywheel_ml.core import serving_folder
from flywheel_ml.core.serving_folder import Routing
from flywheel_ml.core.settings import Settings
from flywheel_ml.experiments.ramp import Ramp
from flywheel_ml.flows.rollout import audit
from flywheel_ml.flows.rollout.audit import ROLLBACK, find_champion_change
from flywheel_ml.flows.rollout.plan import (
    Arm,
    ExperimentPlan,
    check_arms,
    is_other_experiment,
    order_arms,
    read_plan_for,
)
from flywheel_ml.flows.rollout.serving import apply_plan, fetch, format_now, lock_rollout, serve_champion
from flywheel_ml.flows.rollout.versions import (
    check_candidate,
    choose_candidate,
    choose_version,
    find_registered,
    get_challenger,
    get_champion,
)
from flywheel_ml.model.registration.registry import CHAMPION, Registry, Version
from flywheel_ml.utils.errors import ProjectError, PromotionConflict
from flywheel_ml.utils.process import get_user_name


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
    with lock_rollout(folder):
        champion = get_champion(registry)
        routing = serve_champion(registry, champion, settings, why="synced")
        running = read_plan_for(registry, champion)
        plan = ExperimentPlan(
            champion=champion.number,
            arms=order_arms(
                [Arm(version=one or choose_version(registry, running), share=share) for one, share in arms], running
            ),
            salt=secrets.token_hex(16),
            since=format_now(),
            who=get_user_name(),
            why=why,
        )
        check_arms(plan)
        if running and is_other_experiment(running, plan):
            kind = "a canary" if running.ramp else "an experiment"
            raise ProjectError(
                f"{kind} with version{'s' * (len(running.arms) > 1)} {running.versions} ({running.kind}) is running "
                f"since {running.since}; end it first: rollout abort, or rollout promote"
            )
        if running is None or running.arms != plan.arms:
            for arm in plan.arms:
                check_candidate(registry, folder, champion, arm.version)
            if running and plan.keeps_keys_of(running):
                plan = plan.model_copy(update={"salt": running.salt})
            if len(plan.arms) == 1:
                registry.set_challenger(plan.arms[0].version)
            registry.set_plan(plan.dump())
            running = plan
        return apply_plan(registry, routing, running, settings, why)


def start_ramp(registry: Registry, settings: Settings, number: str | None, ramp: Ramp) -> Routing:
    """Start a ramp with a version, by default the challenger.

    Raises:
        ProjectError, GateRefusal: as `start`; also if any experiment is running.
    """
    folder, share = settings.serving_folder, ramp.current.share
    with lock_rollout(folder):
        champion = get_champion(registry)
        routing = serve_champion(registry, champion, settings, why="synced")
        if running := read_plan_for(registry, champion):
            raise ProjectError(
                f"an experiment with version {running.versions} ({running.kind}) is running since {running.since}; "
                "end it first: make abort, or make promote"
            )
        chosen = number or get_challenger(registry)
        check_candidate(registry, folder, champion, chosen)
        plan = ExperimentPlan(
            champion=champion.number,
            arms=(Arm(version=chosen, share=share),),
            salt=secrets.token_hex(16),
            since=format_now(),
            who=get_user_name(),
            why="canary",
            ramp=ramp,
        )
        registry.readmit(chosen)
        registry.set_challenger(chosen)
        registry.set_plan(plan.dump())
        return apply_plan(registry, routing, plan, settings, plan.why)


def advance_ramp(registry: Registry, settings: Settings, plan: ExperimentPlan, ramp: Ramp, why: str) -> Routing:
    """Change the share of a running experiment to that of its ramp's step.

    Raises:
        PromotionConflict: the registry's plan is no longer `plan`.
    """
    with lock_rollout(settings.serving_folder):
        champion = get_champion(registry)
        routing = serve_champion(registry, champion, settings, why="synced")
        # A shadow's breaker may have opened; the first share begins with a new one.
        salt = secrets.token_hex(16) if plan.is_shadow else plan.salt
        arms = (plan.arms[0].model_copy(update={"share": ramp.current.share}),)
        changes = {"arms": arms, "salt": salt, "since": format_now(), "who": get_user_name(), "why": why}
        after = plan.model_copy(update={**changes, "ramp": ramp})
        with registry.hold_lock():
            if read_plan_for(registry, champion) != plan:
                raise PromotionConflict("the plan of the experiment was changed in the meantime; look again")
            registry.set_plan(after.dump())
        return apply_plan(registry, routing, after, settings, why)


def abort(registry: Registry, settings: Settings, why: str = "aborted") -> Routing:
    """End the experiment, so that the champion answers everything; repeating the call has no further effect.

    Raises:
        ProjectError: there is no champion.
    """
    with lock_rollout(settings.serving_folder):
        champion = get_champion(registry)
        registry.set_plan(None)
        routing = serve_champion(registry, champion, settings, why)
        return apply_plan(registry, routing, None, settings, why)


def promote(
    registry: Registry, settings: Settings, number: str | None, override: str = "", why: str = "promoted"
) -> Version:
    """Make a version champion and serve it: by default the version in the experiment, else the challenger.

    Raises:
        ProjectError: there is no such version, a gate refused it, or someone else promoted in the meantime.
    """
    champion = registry.find_alias(CHAMPION)
    chosen = number or choose_candidate(registry, champion, settings.serving_folder)
    expected = champion.number if champion else None
    with lock_rollout(settings.serving_folder):
        # Fetch the bundle before setting the alias: a version whose bundle is unavailable must not become champion.
        fetch(registry, registry.get_promotable(chosen, override), settings.serving_folder)
        version = registry.promote(chosen, expected, override)
        serve_champion(registry, version, settings, override or why)
    return version


def rollback(registry: Registry, settings: Settings, why: str = "rolled back") -> Version:
    """Make the previous champion champion again, and serve it; a running experiment ends.

    A second rollback in a row has no effect, so that two people in a hurry do not roll forward. To return to an older
    version, promote it by number.

    Raises:
        ProjectError: the serving folder has no previous champion.
    """
    with lock_rollout(settings.serving_folder):
        routing = serving_folder.read_routing(settings.serving_folder)
        if routing.previous is None or routing.champion is None:
            raise ProjectError("there is no previous champion to roll back to; `rollout status` lists the versions")
        audit.append_entry(settings.serving_folder, routing)
        champion, last = registry.find_alias(CHAMPION), find_champion_change(settings.serving_folder)
        if champion and champion.digest == routing.champion.digest and last and last["what"] == ROLLBACK:
            return champion
        former = find_registered(registry, routing.previous)
        fetch(registry, former, settings.serving_folder)
        version = registry.promote(former.number, routing.champion.version, override=why, rolls_back=True)
        serve_champion(registry, version, settings, why, ROLLBACK)
    return version
