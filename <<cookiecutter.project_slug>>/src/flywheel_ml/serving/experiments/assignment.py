"""Assigns rows of a request to a challenger."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flywheel_ml.core.serving_folder import Challenger

KEY_HEADER, VARIANT_HEADER = b"x-routing-key", b"x-variant"


class RoutingHints(NamedTuple):
    """Headers that influence which model answers: a routing key, and a tester's choice of variant."""

    key: bytes = b""
    variant: bytes = b""


NO_HINTS = RoutingHints()


def parse_routing_hints(headers: Mapping[bytes, bytes], allow_variant: bool) -> RoutingHints:
    """Parse the hints in a request's headers; the variant is ignored unless the settings allow it."""
    variant = headers.get(VARIANT_HEADER, b"").lower() if allow_variant else b""
    return RoutingHints(headers.get(KEY_HEADER, b""), variant)


def assign_rows(
    challenger: Challenger,
    column: str | None,
    instances: Sequence[Mapping[str, Any]],
    ids: Sequence[str],
    hints: RoutingHints,
) -> list[int]:
    """Return the positions of the rows that the challenger answers.

    A row is assigned by its value of `column`, else by the request's key, else at random by its new prediction id.
    """
    if hints.variant == b"champion":
        return []
    if hints.variant == b"challenger":
        return list(range(len(instances)))
    found = []
    for at, instance in enumerate(instances):
        value = None if column is None else instance.get(column)
        key = str(value).encode() if value is not None else hints.key or ids[at].encode()
        if challenger.is_assigned(key):
            found.append(at)
    return found
