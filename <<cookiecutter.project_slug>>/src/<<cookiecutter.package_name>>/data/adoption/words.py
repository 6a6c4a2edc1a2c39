"""What a column's name says of its role."""

import re

_PARTS = re.compile(r"[A-Z]+(?![^\WA-Z\d_])|[A-Z]?[^\WA-Z\d_]+|\d+")

IDS = frozenset(("id", "ids", "uuid", "guid", "key", "identifier", "rowid"))
NUMBERS = frozenset(("no", "nr", "num", "number", "index", "idx", "code"))
ENTITIES = frozenset(
    (
        "account", "client", "company", "customer", "device", "driver", "employee", "household", "machine", "member",
        "patient", "person", "player", "session", "student", "subject", "supplier", "user", "vehicle", "visitor",
    )
)  # fmt: skip
MOMENTS = (
    "timestamp", "datetime", "time", "date", "created", "ts", "scheduled", "when", "at", "on", "day", "ordered",
    "start",
)  # fmt: skip
NOT_THE_MOMENT = frozenset(
    ("birth", "birthday", "birthdate", "dob", "born", "end", "ended", "expires", "expiry", "expiration", "due",
     "updated", "modified", "closed", "last", "until", "finished", "deleted")
)  # fmt: skip
PERSONAL = frozenset(
    ("email", "mail", "phone", "telephone", "mobile", "ssn", "passport", "surname", "firstname", "lastname", "iban",
     "address", "street", "birthdate", "dob", "birthday")
)  # fmt: skip


def words(name: str) -> list[str]:
    """`CustomerID`, `customer-id` and `customer_id` as `["customer", "id"]`."""
    return [part.lower() for part in _PARTS.findall(name)]


def names_a_row(name: str) -> bool:
    """Whether a name is that of an identifier: an id anywhere in it, or a number or key at its end."""
    found = words(name)
    return bool(IDS & set(found)) or bool(found and found[-1] in NUMBERS)


def names_an_entity(name: str) -> bool:
    """Whether a name is that of someone or something that may come back in other rows."""
    return bool(ENTITIES & set(words(name)))


def is_personal(name: str) -> bool:
    """Whether a name is that of data on a person."""
    return bool(PERSONAL & set(words(name)))


def names_another_moment(name: str) -> bool:
    """Whether a name is that of a moment other than the one a row is about: a birth, an end."""
    return bool(NOT_THE_MOMENT & set(words(name)))


def rank_as_moment(name: str) -> int:
    """How well a name fits the moment a row is about, best first."""
    return min((MOMENTS.index(word) for word in words(name) if word in MOMENTS), default=len(MOMENTS))
