"""Rolls versions out from the registry to the serving folder: promotion, experiments, rollback and the audit log.

The registry holds the desired state: the champion's alias, and a plan of the running experiment. Serving folders follow
the registry, so any number of folders, each next to its servers, route alike. Every change has four steps: bundle,
registry, routing file, audit log. If a process is killed between two steps, the folder still serves, and repeating the
command completes the change.
"""

from flywheel_ml.flows.rollout.audit import AUDIT_FILE, CHAMPION_CHANGES, EXPERIMENT, read_audit
from flywheel_ml.flows.rollout.changes import abort, advance_ramp, promote, rollback, start, start_arms, start_ramp
from flywheel_ml.flows.rollout.following import recover, sync, sync_forever
from flywheel_ml.flows.rollout.plan import Arm, ExperimentPlan, format_share, read_plan
from flywheel_ml.flows.rollout.serving import describe_routing, prune

__all__ = [
    "AUDIT_FILE",
    "CHAMPION_CHANGES",
    "EXPERIMENT",
    "Arm",
    "ExperimentPlan",
    "abort",
    "advance_ramp",
    "describe_routing",
    "format_share",
    "promote",
    "prune",
    "read_audit",
    "read_plan",
    "recover",
    "rollback",
    "start",
    "start_arms",
    "start_ramp",
    "sync",
    "sync_forever",
]
