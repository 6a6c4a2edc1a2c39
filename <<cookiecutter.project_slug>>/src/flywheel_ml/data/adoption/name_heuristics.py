"""Heuristics for a column's role, based on its name."""

import re

_PARTS = re.compile(r"[A-Z]+(?![^\WA-Z\d_])|[A-Z]?[^\WA-Z\d_]+|\d+")

ID_WORDS = frozenset(("id", "ids", "uuid", "guid", "key", "identifier", "rowid"))
NUMBER_WORDS = frozenset(("no", "nr", "num", "number", "index", "idx", "code"))
ENTITY_WORDS = frozenset(
    (
        "account", "client", "company", "customer", "device", "driver", "employee", "household", "machine", "member",
        "patient", "person", "player", "session", "student", "subject", "supplier", "user", "vehicle", "visitor",
    )
)  # fmt: skip
TIME_WORDS = (
    "timestamp", "datetime", "time", "date", "created", "ts", "scheduled", "when", "at", "on", "day", "ordered",
    "start",
)  # fmt: skip
OTHER_TIME_WORDS = frozenset(
    ("birth", "birthday", "birthdate", "dob", "born", "end", "ended", "expires", "expiry", "expiration", "due",
     "updated", "modified", "closed", "last", "until", "finished", "deleted")
)  # fmt: skip
PERSONAL_WORDS = frozenset(
    ("email", "mail", "phone", "telephone", "mobile", "ssn", "passport", "surname", "firstname", "lastname", "iban",
     "address", "street", "birthdate", "dob", "birthday")
)  # fmt: skip
GROUP_WORDS = frozenset(
    ("sex", "gender", "race", "ethnicity", "ethnic", "religion", "nationality", "citizenship", "disability", "marital",
     "married", "language", "minority", "origin", "region", "country")
)  # fmt: skip


_UNNAMED_PATTERN = re.compile(
    r"column_\d+|unnamed: ?\d+(_level_\d+)?|__index_level_\d+__|\.\.\.\d+|level_\d"
    r"|row[ _.]?(names?|index|no|nr|num(ber)?)?",
    re.IGNORECASE,
)
_GENERIC_NAME = re.compile(r"index|X|V1|_c0|(column|field|var|col)_?[01]|n|#")


_SAMPLE_WEIGHT = re.compile(
    r"(sample|case|instance|survey|sampling|observation|obs|row|frequency|freq|probability)_(weights?|wgts?|wts?)"
    r"|[pfia]weights?|fnlwgt|finalwgt|perwt|hhwt|weights"
)
_WEIGHT = re.compile(r"weight|wgts?|wts?")


def split_words(name: str) -> list[str]:
    """`CustomerID`, `customer-id` and `customer_id` as `["customer", "id"]`."""
    return [part.lower() for part in _PARTS.findall(name)]


def is_identifier(name: str) -> bool:
    """Whether a name is that of an identifier: an id anywhere in it, or a number or key at its end."""
    found = split_words(name)
    return bool(ID_WORDS & set(found)) or bool(found and found[-1] in NUMBER_WORDS)


def is_unnamed(name: str) -> bool:
    """Whether a name is one that libraries give to an unnamed row index."""
    return _UNNAMED_PATTERN.fullmatch(name) is not None


def is_library_name(name: str) -> bool:
    """Whether a name is one that libraries give to unnamed columns; a user may have chosen some of these."""
    return is_unnamed(name) or _GENERIC_NAME.fullmatch(name) is not None


def is_weight(name: str) -> bool:
    """Whether a name clearly means sample weights."""
    return _SAMPLE_WEIGHT.fullmatch("_".join(split_words(name))) is not None


def may_be_weight(name: str) -> bool:
    """Whether a name may mean sample weights; it may also be the weight of a car or a newborn."""
    return _WEIGHT.fullmatch("_".join(split_words(name))) is not None


def is_entity(name: str) -> bool:
    """Whether a name is that of an entity that may occur in several rows."""
    return bool(ENTITY_WORDS & set(split_words(name)))


def is_personal(name: str) -> bool:
    """Whether a name suggests personal data."""
    return bool(PERSONAL_WORDS & set(split_words(name)))


def is_group(name: str) -> bool:
    """Whether a name suggests groups of people that a model must treat alike."""
    return bool(GROUP_WORDS & set(split_words(name)))


def is_other_time(name: str) -> bool:
    """Whether a name is that of a time other than the row's own, such as a birth or an end."""
    return bool(OTHER_TIME_WORDS & set(split_words(name)))


def rank_as_time(name: str) -> int:
    """Rank how well a name fits the row's time; 0 is best."""
    return min((TIME_WORDS.index(word) for word in split_words(name) if word in TIME_WORDS), default=len(TIME_WORDS))
