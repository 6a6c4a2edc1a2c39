"""Reads the role of a registered version without importing MLflow, which takes seconds."""

from collections.abc import Mapping
from typing import NamedTuple

import sqlalchemy as sa

from flywheel_ml.core.settings import Settings

CHAMPION, CHALLENGER, REFUSED, ROLLED_BACK, PASSED = "champion", "challenger", "refused", "rolled back", "passed"
"""Roles: the first two are aliases of the registered model; `passed` means passed without another role."""
DIGEST_TAG, GATES_TAG, REFUSED_TAG, ROLLED_BACK_TAG = "bundle_sha256", "gates", "refused", "rolled_back"
"""Tags of a version."""


class State(NamedTuple):
    """A version's digest and role, the champion's number and digest, and why the gates refused the version, if so."""

    digest: str
    role: str
    champion: tuple[str, str] | None
    refusal: str = ""


def get_refusal(tags: Mapping[str, str]) -> str:
    """Return why the gates refused a version; empty if they passed it."""
    return tags.get(REFUSED_TAG) or ("" if tags.get(GATES_TAG) == "passed" else "no gate has checked it")


def get_role(number: str, tags: Mapping[str, str], aliases: Mapping[str, str]) -> str:
    """Return the role of a version, from its tags and the versions that hold the aliases."""
    for alias in (CHAMPION, CHALLENGER):
        if aliases.get(alias) == number:
            return alias
    if get_refusal(tags):
        return REFUSED
    return ROLLED_BACK if tags.get(ROLLED_BACK_TAG) else PASSED


def read_state(settings: Settings, name: str, number: str) -> State | None:
    """Read the state of a version of the registered model `name` directly from MLflow's database.

    None if the registry is a server, lacks the version, or has an unknown schema.
    """
    if settings.has_tracking_server:
        return None
    aliases = sa.table("registered_model_aliases", sa.column("name"), sa.column("alias"), sa.column("version"))
    tags = sa.table("model_version_tags", *map(sa.column, ("name", "version", "key", "value")))
    try:
        engine = sa.create_engine(settings.tracking_uri)
        with engine.connect() as connection:
            query = sa.select(aliases.c.alias, aliases.c.version).where(aliases.c.name == name)
            holders = {alias: str(version) for alias, version in connection.execute(query)}
            found: dict[str, dict[str, str]] = {}
            wanted = [int(number), int(holders.get(CHAMPION, number))]
            rows = sa.select(tags.c.version, tags.c.key, tags.c.value)
            rows = rows.where(tags.c.name == name, tags.c.version.in_(wanted))
            for version, key, value in connection.execute(rows):
                found.setdefault(str(version), {})[key] = value
        engine.dispose()
    except (sa.exc.SQLAlchemyError, ImportError, ValueError):
        return None
    if number not in found:
        return None
    champion = holders.get(CHAMPION)
    leading = (champion, found.get(champion, {}).get(DIGEST_TAG, "")) if champion else None
    tags_of = found[number]
    return State(tags_of.get(DIGEST_TAG, ""), get_role(number, tags_of, holders), leading, get_refusal(tags_of))
