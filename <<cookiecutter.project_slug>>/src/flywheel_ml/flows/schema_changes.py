"""Compares the upstream schema with that of the last completed run, and reports the changes.

The state is in `var/`, not in a stage: stages are pure, and DVC deletes their previous outputs.
"""

from flywheel_ml.core import paths
from flywheel_ml.data.upstream_schema import Schema, SchemaChanges, compare_schemas
from flywheel_ml.flows.run_state import FOLDER
from flywheel_ml.utils.files import read_json, write_json

STATE_FILE = FOLDER / "upstream_schema.json"
REPORT = paths.REPORTS / "upstream_schema.json"


def report_changes() -> SchemaChanges:
    """Compare the ingested table with the last completed run and write the report; call it after ingest.

    A run that fails, such as one whose rows break the contract, is compared again by the next run.
    """
    after, before = _read_ingested(), _read_state()
    changes = compare_schemas(before or after, after) if after else SchemaChanges()
    write_json(REPORT, {**changes.model_dump(mode="json"), "compared": before is not None, "columns": dict(after)})
    return changes


def record_schema() -> None:
    """Remember the ingested schema for the next run; call it when a run has completed."""
    if found := _read_ingested():  # An ingest of an older version of this package recorded none.
        write_json(STATE_FILE, dict(found))


def _read_ingested() -> Schema:
    found: Schema = read_json(paths.REPORTS / "ingest.json").get("columns", {})
    return found


def _read_state() -> Schema | None:
    try:
        found = read_json(STATE_FILE)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found else None
