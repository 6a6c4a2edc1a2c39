"""Whatever a client sends, the server has no fault of its own, and every answer is as its description says.

Schemathesis makes requests from the description; what lies below HTTP's own rules is in test_raw_bytes.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from schemathesis.engine import events, from_schema

from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.testing.bundles import make_bundle
from flywheel_ml.testing.servers import ServingFolder
from flywheel_ml.utils import config_model
from library.helpers import rows
from library.helpers.servers import Server
from library.loop.test_tasks import adapted

KEY = "a-key-for-everything"
CONTRACTS: dict[str, list[dict[str, Any]]] = {
    "many classes": [
        {"name": "row", "type": "integer", "role": "id"},
        {"name": "when", "type": "datetime", "role": "time"},
        {"name": "size", "type": "integer", "range": [-5, 100], "nullable": True},
        {"name": "kind", "type": "string", "categories": ["a", 'b"c', "d\\e"], "max_unknown_share": 0.1},
        {"name": "open", "type": "boolean", "nullable": True},
        {"name": "words", "type": "string", "free_text": True, "nullable": True},
        {"name": "colour", "type": "string", "categories": ["red", "grün", '"b\\lue"'], "role": "target"},
    ],
    "a number": [
        {"name": "__proto__", "type": "float", "range": [0, 1]},
        {"name": 'a "quoted" name', "type": "float"},
        {"name": "größe in m²", "type": "integer", "nullable": True},
        {"name": "it's", "type": "string", "categories": ["x", "y"]},
        {"name": "back\\slash {and} %s", "type": "boolean"},
        {"name": "instances", "type": "string", "nullable": True},
        {"name": "price", "type": "float", "role": "target"},
    ],
}
OWN = "the project's own"

CHECKS = {
    # Statuses that refuse what the description allows: see `is_rule_beyond_json_schema` for the rest of the story.
    "negative_data_rejection": {"expected-statuses": ["400", "401", "403", "404", "405", "413", "415", "422", "429"]},
}
TABLES = ("/invocations", "/v2")
"""Protocols whose tables JSON Schema cannot describe: what fits their description may still be refused."""
BEYOND_SCHEMAS = (
    "must not be in the future",
    "must be an ISO 8601 date and time",
    "must not be missing",
)
"""Rules of /predict, /explain and /feedback that JSON Schema has no words for: a blank text is missing, say."""


@pytest.fixture(scope="module", params=[OWN, *CONTRACTS])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, bundle_path: Path, params: Params
) -> Iterator[Server]:
    """A server that asks for a key."""
    home, path = tmp_path_factory.mktemp("fuzz"), bundle_path
    if request.param != OWN:
        contract = config_model.parse(
            {"name": request.param, "columns": CONTRACTS[request.param]}, Contract, "contract"
        )
        path = make_bundle(home / "bundle", rows.make_table(contract, 600), contract, adapted(params, contract))
    ServingFolder(home / "serving", path).roll_out("1")
    # In production nothing but the questions of machines after its health is open.
    with Server(home, ML_API_KEYS=KEY, ML_ENVIRONMENT="production") as running:
        yield running


ROWS = {"/predict": "instances", "/explain": "instances", "/feedback": "labels"}


def faults(server: Server, examples: int, phases: tuple[str, ...]) -> list[str]:
    """Return the errors that a fixed number of examples per operation finds, with a fixed seed."""
    with server.client(headers={"X-API-Key": KEY}) as client:
        description, model = (client.get(path).json() for path in ("/openapi.json", "/model"))
    config = schemathesis.Config.from_dict(
        {
            "base-url": server.url,
            "headers": {"X-API-Key": KEY},
            "workers": 1,
            "request-timeout": 20,
            "continue-on-failure": True,
            "generation": {
                "deterministic": True,
                "max-examples": examples,
                "database": "none",
                "no-shrink": True,
                "with-security-parameters": False,
            },
            "phases": {name: {"enabled": name in phases} for name in ("examples", "coverage", "fuzzing", "stateful")},
            "checks": CHECKS,
            # Of any other name and version there is only to say that they are unknown.
            "operations": [{"include-path-regex": "infer$", "parameters": {"name": model["name"], "version": "1"}}],
        }
    )
    schemas = description["components"]["schemas"]
    fields = {name for part in ("Instance", "Label", "EntityLabel") for name in schemas[part]["properties"]}
    found = []
    for event in from_schema(schemathesis.openapi.from_dict(description, config=config)).execute():
        if isinstance(event, events.NonFatalError | events.FatalError):
            found.append(str(event))
        elif isinstance(event, events.ScenarioFinished):
            found += list(_failures(event.recorder, fields))
    return found


def _failures(recorder: Any, fields: set[str]) -> Iterator[str]:
    for case, checks in recorder.checks.items():
        answer, asked = recorder.interactions[case].response, recorder.cases[case].value
        for check in checks:
            if check.failure_info is not None and not (
                (check.name == "positive_data_acceptance" and is_rule_beyond_json_schema(asked, answer))
                or (check.name == "negative_data_rejection" and has_table_notation(asked, fields))
            ):
                failure = check.failure_info
                yield f"{recorder.label}: {failure.failure}\n{failure.code_sample}\n{answer and answer.content[:500]!r}"


def is_rule_beyond_json_schema(case: Any, answer: Any) -> bool:
    """Whether a rejection of a request in the documented form names a rule that a JSON Schema cannot express."""
    if case.operation.path.startswith(TABLES) or answer.status_code == 413:
        return True
    rules = [fault["rule"] for fault in answer.json().get("errors", [])]
    return bool(rules) and all(rule.startswith(BEYOND_SCHEMAS) for rule in rules)


def has_table_notation(case: Any, fields: set[str]) -> bool:
    """Whether a request is of the described form but for how its rows write single values: as a table may."""
    name = ROWS.get(case.operation.path)
    rows = case.body.get(name) if isinstance(case.body, dict) and case.body.keys() == {name} else None
    return isinstance(rows, list) and all(
        isinstance(row, dict)
        and row.keys() <= fields
        and not any(isinstance(value, list | dict) for value in row.values())
        for row in rows
    )


def test_responses_match_the_description(site: Server) -> None:
    assert faults(site, 4, ("fuzzing",)) == []


@pytest.mark.chaos
@pytest.mark.full
def test_responses_match_the_description_in_a_long_search(site: Server) -> None:
    assert faults(site, 50, ("examples", "coverage", "fuzzing")) == []
