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


_UNNAMED = re.compile(
    r"column_\d+|unnamed: ?\d+(_level_\d+)?|__index_level_\d+__|\.\.\.\d+|level_\d"
    r"|row[ _.]?(names?|index|no|nr|num(ber)?)?",
    re.IGNORECASE,
)
_HARDLY_NAMED = re.compile(r"index|X|V1|_c0|(column|field|var|col)_?[01]|n|#")


_SAMPLE_WEIGHT = re.compile(
    r"(sample|case|instance|survey|sampling|observation|obs|row|frequency|freq|probability)_(weights?|wgts?|wts?)"
    r"|[pfia]weights?|fnlwgt|finalwgt|perwt|hhwt|weights"
)
_WEIGHT = re.compile(r"weight|wgts?|wts?")


def words(name: str) -> list[str]:
    """`CustomerID`, `customer-id` and `customer_id` as `["customer", "id"]`."""
    return [part.lower() for part in _PARTS.findall(name)]


def names_a_row(name: str) -> bool:
    """Whether a name is that of an identifier: an id anywhere in it, or a number or key at its end."""
    found = words(name)
    return bool(IDS & set(found)) or bool(found and found[-1] in NUMBERS)


def is_unnamed(name: str) -> bool:
    """Whether a name is one that libraries give an index of rows, which has none."""
    return _UNNAMED.fullmatch(name) is not None


def is_library_name(name: str) -> bool:
    """Whether a name is one that libraries give a column without one; a person may mean something by some of these."""
    return is_unnamed(name) or _HARDLY_NAMED.fullmatch(name) is not None


def names_a_weight(name: str) -> bool:
    """Whether a name is that of sample weights, and of nothing else that weighs."""
    return _SAMPLE_WEIGHT.fullmatch("_".join(words(name))) is not None


def may_name_a_weight(name: str) -> bool:
    """Whether a name may be that of sample weights: the weight of a car or a newborn has it too."""
    return _WEIGHT.fullmatch("_".join(words(name))) is not None


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
