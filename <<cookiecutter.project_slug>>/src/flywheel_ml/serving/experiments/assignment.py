"""Assigns rows of a request to challengers."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flywheel_ml.core.serving_folder import KeySplit, Routing

KEY_HEADER, VARIANT_HEADER = b"x-routing-key", b"x-variant"


class RoutingHints(NamedTuple):
    """Headers that influence which model answers: a routing key, and a tester's choice of variant or version."""

    key: bytes = b""
    variant: bytes = b""


NO_HINTS = RoutingHints()


def parse_routing_hints(headers: Mapping[bytes, bytes], allow_variant: bool) -> RoutingHints:
    """Parse the hints in a request's headers; the variant is ignored unless the settings allow it."""
    variant = headers.get(VARIANT_HEADER, b"").lower() if allow_variant else b""
    return RoutingHints(headers.get(KEY_HEADER, b""), variant)


class RowAssigner:
    """Assigns the rows of requests to the challengers of a routing, which has at least one.

    Args:
        routing: the challengers.
        column: name of the id column of the champion's contract, if it has one.
    """

    def __init__(self, routing: Routing, column: str | None) -> None:
        self._split = KeySplit(routing.challengers)
        self._column = column
        # The header is read in lower case; `challenger` means the first one.
        versions = {one.ref.version.lower().encode(): at for at, one in enumerate(routing.challengers)}
        champions = [b"champion", *([routing.champion.version.lower().encode()] if routing.champion else [])]
        self._choices: dict[bytes, int | None] = {b"challenger": 0, **versions, **dict.fromkeys(champions)}

    def assign(self, instances: Sequence[Mapping[str, Any]], ids: Sequence[str], hints: RoutingHints) -> dict[int, int]:
        """Return the rows that challengers are to answer: position → position of the challenger in the routing.

        A row is assigned by its value of the id column, else by the request's key, else at random by its new prediction
        id.
        """
        if hints.variant in self._choices:
            chosen = self._choices[hints.variant]
            return {} if chosen is None else dict.fromkeys(range(len(instances)), chosen)
        column, find, found = self._column, self._split.find, {}
        for at, instance in enumerate(instances):
            value = None if column is None else instance.get(column)
            key = str(value).encode() if value is not None else hints.key or ids[at].encode()
            if (arm := find(key)) is not None:
                found[at] = arm
        return found
