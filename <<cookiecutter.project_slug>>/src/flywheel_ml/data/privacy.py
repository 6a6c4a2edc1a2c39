"""Searches for personal data: patterns in text columns and files, and values of columns that are declared personal.

Patterns find what has a form: addresses, international phone numbers, card and bank account numbers with a valid check
digit, US social security numbers. Names and postal addresses have none; the contract must declare their columns.
"""

import html
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from flywheel_ml.core.contract import Contract

MIN_VALUE_LENGTH = 5
"""Shorter values of personal columns occur in any file."""
MAX_VALUES = 50_000


def _has_luhn_digit(found: str) -> bool:
    """Whether a card number's last digit is its check digit (ISO/IEC 7812-1, annex B)."""
    digits = [int(letter) for letter in reversed(found) if letter.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) if at % 2 else digit for at, digit in enumerate(digits)]
    return len(set(digits)) > 1 and sum(doubled) % 10 == 0


def _has_iban_digits(found: str) -> bool:
    """Whether an account number has valid check digits (ISO 13616: the remainder by 97 is 1)."""
    text = found.replace(" ", "")
    return int("".join(str(int(letter, 36)) for letter in text[4:] + text[:4])) % 97 == 1


def _accept(_: str) -> bool:
    return True


PATTERNS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "e-mail address": (r"[\w.%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}", _accept),
    "phone number": (r"\+[1-9]\d{0,2}[ .(/-]{0,2}\d(?:[ .()/-]{0,2}\d){6,12}|\(\d{3}\) ?\d{3}-\d{4}", _accept),
    "card number": (r"[3-6]\d{3}(?:[ -]?\d{4}){2}[ -]?\d{1,7}", _has_luhn_digit),
    "bank account number": (r"[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?", _has_iban_digits),
    "social security number": (r"\d{3}-\d{2}-\d{4}", _accept),
}
"""Kind → pattern, in the syntax that Python and Polars share, and a check of what it matches."""
_BOUNDED = {
    kind: (re.compile(rf"(?<![\w.+-])(?:{pattern})(?![\w-]|\.\d)"), check)
    for kind, (pattern, check) in PATTERNS.items()
}


def find_patterns(text: str) -> Counter[str]:
    """Count what looks like personal data in a text, by kind; values are never returned."""
    return +Counter(
        {
            kind: sum(check(match.group()) for match in pattern.finditer(text))
            for kind, (pattern, check) in _BOUNDED.items()
        }
    )


def scan_table(table: pl.DataFrame, contract: Contract) -> dict[str, dict[str, int]]:
    """Count the distinct values of each text column that look like personal data: column → kind → values."""
    found = {}
    for column in contract.columns:
        if column.type != "string" or column.name not in table.columns:
            continue
        values = table[column.name].drop_nulls().unique()
        likely = values.filter(values.str.contains("|".join(pattern for pattern, _ in PATTERNS.values())))
        counts = sum((Counter(dict.fromkeys(find_patterns(value), 1)) for value in likely.to_list()), Counter[str]())
        if counts:
            found[column.name] = dict(sorted(counts.items()))
    return found


def list_undeclared(found: Collection[str], contract: Contract) -> list[str]:
    """Columns with personal data that the contract does not declare personal."""
    return [name for name in found if not contract[name].personal]


def report_table(table: pl.DataFrame, contract: Contract, digest: str) -> dict[str, Any]:
    """Report a scan; `digest` is the sha256 of the table."""
    found = scan_table(table, contract)
    return {
        "rows": table.height,
        "sha256": digest,
        "contract_sha256": contract.fingerprint(),
        "columns": found,
        "undeclared": list_undeclared(found, contract),
        "personal": [column.name for column in contract.columns if column.personal],
    }


def collect_values(table: pl.DataFrame, contract: Contract) -> tuple[list[str], int]:
    """Distinct values of the text columns that are declared personal, and how many are left out.

    There are at most `MAX_VALUES`, of each column the same number.
    """
    names = [column.name for column in contract.columns if column.personal and column.type == "string"]
    found = [table[name].drop_nulls().unique(maintain_order=True) for name in names if name in table.columns]
    found = [values.filter(values.str.len_chars() >= MIN_VALUE_LENGTH) for values in found]
    limit = MAX_VALUES // max(len(found), 1)
    values = [value for one in found for value in one.head(limit).to_list()]
    return values, sum(map(len, found)) - len(values)


def scan_files(paths: Collection[Path], values: Collection[str]) -> Mapping[Path, Counter[str]]:
    """Count in text files what looks like personal data, and the values of personal columns."""
    found = {}
    wanted = sorted({form for value in values for form in _list_forms(value)})
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace")
        counts = find_patterns(text)
        if wanted and (hits := pl.Series([text]).str.extract_many(wanted)[0]) is not None and len(hits):
            counts["value of a personal column"] = len(hits)
        if counts:
            found[path] = counts
    return found


def _list_forms(value: str) -> Iterator[str]:
    """Yield a value as text, HTML (of the standard library, and of Jinja) and JSON have it."""
    escaped = html.escape(value)
    yield value
    yield escaped
    yield escaped.replace("&#x27;", "&#39;").replace("&quot;", "&#34;")
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield json.dumps(value)[1:-1]
