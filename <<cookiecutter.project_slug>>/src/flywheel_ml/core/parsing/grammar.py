"""Compiles a column's parsing rules from the contract, for single values and whole columns."""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

from flywheel_ml.core.contract import Column, ColumnType, Parse
from flywheel_ml.utils import timestamps

MARKERS = frozenset(
    (
        "", "na", "n/a", "#n/a", "<na>", "n.a.", "nan", "-nan", "+nan", "nat", "null", "(null)", "<null>", "none",
        "nil", "missing", "unknown", "not available", "k.a.", "k. a.", "n.d.", "s/d", "nv", "#nv", "?", "-", "--",
        "---", "–", "—", ".", "..", "...", "…", "*", ":", "/", "\\n", "inf", "+inf", "-inf", "infinity", "+infinity",
        "-infinity", "∞", "+∞", "-∞", "1.#inf", "-1.#inf", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "#div/0!",
        "#value!", "#ref!", "#name?", "#num!", "#null!", "#error!", "#n/v", "#wert!", "#bezug!", "#zahl!", "#valeur!",
        "err:502",
    )
)  # fmt: skip
"""Texts for a missing value in columns of numbers, booleans and timestamps; in lower case."""

PANDAS_MARKERS = frozenset(("None", "NA", "N/A", "n/a", "<NA>", "null", "NULL", "nan", "NaN"))
"""Words that pandas also reads as missing in a column of texts."""

BOOLEANS = {
    **dict.fromkeys(("true", "t", "yes", "y", "1", "1.0"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0", "0.0"), False),
}
BLANKS = (
    " \t\n\r\x0b\x0c\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
"""White space as Unicode defines it. Python's own definition has four characters more than that of Polars."""
TYPOGRAPHY = {
    "[\xa0\u2007\u2009\u202f]": " ",
    "[\u2212\u2013\uff0d]": "-",
    "[\u2019]": "'",
}
"""Characters of typeset numbers and their plain-text replacements."""
ZEROS = "0-/.: T"
"""A date made only of these, such as 0000-00-00, is missing."""
MIN_ZEROS = 8


class Grammar(NamedTuple):
    """Parsing rules for the cells of a column.

    `na_values` and `booleans` (in lower case) are texts; `sentinels` are the parsed values of `na_values`. `number` is
    the regular expression of a number; its groups are the signs and the digits. `code_width` is the width of categories
    that are all digits, else 0: table readers turn 00123 into the number 123. `missing_category` is the category that
    pandas reads as missing; in a column without missing values, a missing cell is restored to it.
    """

    type: ColumnType
    na_values: frozenset[str]
    sentinels: frozenset[Any]
    booleans: dict[str, bool]
    number: str
    decimal: str
    thousands: str
    formats: tuple[timestamps.Format, ...]
    counts: bool
    time_zone: str
    code_width: int
    missing_category: str | None

    def is_marker(self, text: str) -> bool:
        """Whether a stripped text marks a missing value."""
        if text in self.na_values or not text:
            return True
        if self.type == "string":
            return False
        lower = text.lower()
        if self.type == "boolean" and lower in self.booleans:
            return False
        if self.type == "datetime" and len(text) >= MIN_ZEROS and not text.strip(ZEROS):
            return True
        return lower in MARKERS


def build_grammar(column: Column) -> Grammar:
    """Build the grammar of a column."""
    texts = column.categories if column.type == "string" and column.role != "target" else None
    return _build_grammar(column.type, column.parse, column.time_zone, texts or (), column.nullable)


@lru_cache(maxsize=8192)
def _build_grammar(
    kind: ColumnType, parse: Parse, time_zone: str, categories: tuple[str | int, ...], is_nullable: bool
) -> Grammar:
    booleans = BOOLEANS | dict.fromkeys(map(str.lower, parse.true_values), True)
    names = parse.date_formats
    formats = [
        timestamps.compile_format(name) for name in (*names, *([] if timestamps.ISO in names else [timestamps.ISO]))
    ]
    found = Grammar(
        kind,
        frozenset(parse.na_values),
        frozenset(),
        booleans | dict.fromkeys(map(str.lower, parse.false_values), False),
        _build_number_pattern(parse),
        parse.decimal,
        parse.thousands,
        tuple(formats),
        bool(names) and names != (timestamps.ISO,),
        time_zone,
        _find_code_width([str(name) for name in categories]),
        _find_missing_category([str(name) for name in categories]) if not is_nullable else None,
    )
    if kind not in ("float", "integer", "datetime") or not parse.na_values:
        return found
    from flywheel_ml.core.parsing.value import read_text  # A circular import: sentinels are parsed with a grammar.

    sentinels = set()
    for text in parse.na_values:
        try:
            sentinels.add(read_text(text, found._replace(na_values=frozenset())))
        except ValueError:
            continue
    return found._replace(sentinels=frozenset(sentinels - {None}))


def _find_code_width(categories: Sequence[str]) -> int:
    widths = {len(name) if name.isascii() and name.isdigit() else 0 for name in categories}
    return widths.pop() if len(widths) == 1 else 0


def _find_missing_category(categories: Sequence[str]) -> str | None:
    words = [name for name in categories if name in PANDAS_MARKERS]
    return words[0] if len(words) == 1 else None


def clean_text(text: str) -> str:
    """Strip surrounding blanks and normalise to NFC."""
    text = text.strip(BLANKS)
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def to_plain_characters(text: str) -> str:
    """Replace typographic spaces, hyphens and apostrophes by plain ones."""
    if text.isascii():
        return text
    for pattern, character in TYPOGRAPHY.items():
        text = compile_regex(pattern).sub(character, text)
    return text


@cache
def compile_regex(pattern: str) -> re.Pattern[str]:
    """Compile a regular expression, cached."""
    return re.compile(pattern)


def _build_number_pattern(parse: Parse) -> str:
    """One optional sign in front or behind, or parentheses for a negative number, and symbols on either side."""
    point, group = re.escape(parse.decimal), re.escape(parse.thousands)
    digits = f"(?:[0-9]+(?:{point}[0-9]*)?|{point}[0-9]+)(?:[eE][-+]?[0-9]+)?"
    if parse.thousands:
        digits = f"[1-9][0-9]{{0,2}}(?:{group}[0-9]{{2,3}})*{group}[0-9]{{3}}(?:{point}[0-9]*)?|{digits}"
    # Bounded, or a long run of blanks in a request would keep Python's `re` busy for minutes.
    gap, symbol = " {0,3}", ""
    if parse.symbols:
        either = "|".join(
            re.escape(to_plain_characters(symbol)) for symbol in sorted(parse.symbols, key=len, reverse=True)
        )
        symbol = f"(?:(?:{either}){gap})?"
    return (
        rf"^{symbol}(?P<open>\()?{gap}(?P<before>[-+])?{gap}{symbol}(?P<inner>[-+])?(?P<digits>{digits}){gap}{symbol}"
        rf"(?P<after>-)?{gap}(?P<close>\))?{gap}{symbol}$"
    )
