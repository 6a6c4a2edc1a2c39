"""Detects how numbers are written: the decimal sign, the thousands separator, and units next to them."""

from collections import Counter
from typing import NamedTuple

import polars as pl

from flywheel_ml.core.contract import INTEGER_LIMIT, Column, Parse
from flywheel_ml.core.parsing import build_grammar
from flywheel_ml.core.parsing.series import parse_series
from flywheel_ml.data.adoption.detection.detected import (
    CODE,
    MAJORITY,
    TEXT,
    TOLERANCE,
    Detected,
    Hints,
    find_fitting,
    find_words,
    share_true,
)


class Style(NamedTuple):
    """A way of writing numbers."""

    description: str
    decimal: str
    thousands: str


PLAIN = Style("number", ".", "")
COMMA = Style("decimal comma", ",", "")
ENGLISH = Style("comma for thousands", ".", ",")
EURO = Style("decimal comma, point for thousands", ",", ".")
STYLES = (
    PLAIN,
    COMMA,
    ENGLISH,
    EURO,
    Style("space for thousands", ".", " "),
    Style("decimal comma, space for thousands", ",", " "),
    Style("apostrophe for thousands", ".", "'"),
    Style("decimal comma, apostrophe for thousands", ",", "'"),
)
AMBIGUOUS = "1,234 may be a thousand or one and a bit"
_DIGITS = 15
"""An integer of as many digits is exact as float64."""
_SCREENED_ROWS = 500
_SURE_ROWS, _SURE_OF_SEMICOLONS = 44, 15
"""This many cells with three digits after the point, together with integers below 1,000, are thousands: decimals
without trailing zeros would show fewer digits in one of ten cells (0.9^44 < 0.01). Where semicolons separate the
columns, the comma most likely is the decimal sign already."""
_MIN_EVIDENCE_SHARE = 0.02
"""Minimum share of cells that counts as evidence rather than typing errors."""

_PREFIX = r"^[-+(]? *([^-+().,'0-9\s](?:[^0-9]*[^-+(,'0-9\s])?) *[-+(]? *[.,]?[0-9]"
_SUFFIX = r"[0-9][.,]? *[-+)]? *([^-+().,'0-9\s](?:[^0-9]*[^-+(),'0-9\s])?) *[-+)]?$"
_CURRENCIES = {
    **dict.fromkeys(("€", "eur", "euro"), "€"),
    **dict.fromkeys(("$", "usd", "us$", "dollar"), "$"),
    **dict.fromkeys(("£", "gbp"), "£"),
    **dict.fromkeys(("¥", "jpy", "yen"), "¥"),
    **{
        sign: sign
        for sign in ("₹", "₽", "₩", "₺", "₫", "₪", "₴", "₦", "฿", "a$", "c$", "ca$", "au$", "nz$", "hk$", "r$")
    },
    **{code: code for code in ("chf", "fr", "sek", "nok", "dkk", "kr", "pln", "zł", "czk", "kč", "huf", "ft")},
    **{code: code for code in ("cad", "aud", "nzd", "cny", "rmb", "inr", "rs", "brl", "mxn", "zar", "try", "rub")},
}
_SIGNS = list(_CURRENCIES)
_MAGNITUDES = frozenset(
    ("k", "m", "mn", "mio", "million", "b", "bn", "mrd", "billion", "tsd", "thousand", "t", "lakh", "cr")
)
_ORDINALS = frozenset(("st", "nd", "rd"))
_FOOTNOTES = frozenset("*†‡§")
_UNIT = r"^(?:[%‰°′″*†‡§]|[\p{L}µ°][\p{L}µ°²³/ ·.^%]{0,11})$"
_MAX_SPELLINGS, _MAX_UNITS, _MIN_DISTINCT = 8, 4, 12


def detect(texts: pl.Series, cells: pl.Series, hints: Hints) -> Detected | None:
    """Detect how to parse a column of numbers; None if it holds anything else.

    `texts` are the non-missing cells, `cells` all of them.
    """
    if _is_plain(texts):
        return _build_detected(texts, cells, [PLAIN], _NO_UNITS, hints)
    some = texts.gather_every(max(1, len(texts) // _SCREENED_ROWS))
    if share_true(some.str.contains("[0-9]")) < MAJORITY:
        return None
    units = _detect_units(texts)
    if units is None:
        return None
    if units.several:
        return TEXT._replace(description=f"numbers of several units: {', '.join(units.spelt)}", unclear="unit")
    styles = [
        (style, fits)
        for style in _list_possible_styles(some, texts, units)
        if share_true(fits := find_fitting(texts, "float", _build_parse(style, units))) >= MAJORITY
    ]
    whole = [found for found in styles if share_true(found[1]) >= 1 - TOLERANCE]
    words: list[str] = []
    if not whole and styles and cells.name != hints.target:
        # Words such as `pending` leave the rest numbers.
        style, fits = max(styles, key=lambda found: share_true(found[1]))
        if words := find_words(texts, fits):
            texts = texts.filter(fits)
            whole = [(other, fits.filter(fits)) for other, those in styles if (those | ~fits).all()] or [(style, fits)]
    if not whole:
        return None
    found = _build_detected(texts, cells, [style for style, _ in whole], units, hints)
    return (
        found.with_missing(words)._replace(description=f"{found.description}, {_quote_words(words)} missing")
        if words
        else found
    )


def find_decimal_sign(texts: pl.Series) -> str:
    """Find the decimal sign that the cells of a column show; empty if they show none."""
    some = texts.gather_every(max(1, len(texts) // _SCREENED_ROWS))
    if _is_plain(some):
        return "." if some.str.contains(".", literal=True).any() else ""
    if share_true(some.str.contains("[0-9]")) < MAJORITY or (units := _detect_units(some)) is None or units.several:
        return ""
    fits = [
        s
        for s in _list_possible_styles(some, some, units)
        if share_true(find_fitting(some, "float", _build_parse(s, units))) >= 1 - TOLERANCE
    ]
    decimals = {style.decimal for style in fits}
    if len(decimals) != 1:
        return ""
    sign = decimals.pop()
    digits = _extract_digits(some, _build_parse(fits[0], units))
    return sign if digits.str.contains(sign, literal=True).any() else ""


def _is_plain(texts: pl.Series) -> bool:
    """Whether all cells are numbers with at most one point, which no thousands can explain: most columns are so."""
    text = pl.nth(0)
    marked = text.str.contains(".", literal=True)
    grouped = text.str.contains(r"^[-+]?[1-9][0-9]{0,2}(?:\.[0-9]{3})+$")
    numbers = text.cast(pl.Float64, strict=False).is_finite().fill_null(value=False).all()
    facts = texts.to_frame().select(numbers.alias("all"), marked.sum().alias("marked"), grouped.sum().alias("grouped"))
    (found, points, groups) = facts.row(0)
    return bool(found) and (points == 0 or points - groups >= _MIN_EVIDENCE_SHARE * points)


def find_non_numbers(texts: pl.Series) -> pl.Series | None:
    """Find the texts that alone prevent a column of numbers; None if it is not mostly numbers."""
    odd = min(
        (texts.filter(~find_fitting(texts, "float", _build_parse(style, _NO_UNITS))) for style in STYLES[:4]), key=len
    )
    return odd if 0 < len(odd) <= MAJORITY * len(texts) else None


class _Units(NamedTuple):
    spelt: tuple[str, ...]
    unit: str
    coverage: float = 0.0
    several: bool = False


_NO_UNITS = _Units((), "")


def _detect_units(texts: pl.Series) -> _Units | None:
    """Detect the units next to the numbers; None if the texts are not numbers with units."""
    found = Counter[str]()
    for pattern, is_prefix in ((_PREFIX, True), (_SUFFIX, False)):
        tokens = texts.str.extract(pattern, 1).drop_nulls()
        if len(tokens) < _MIN_EVIDENCE_SHARE / 2 * len(texts):
            continue
        counted = tokens.value_counts(sort=True).head(50)
        names = counted.to_series()
        known = counted.filter(names.str.to_lowercase().is_in(_SIGNS) | (names.str.contains(_UNIT) & (not is_prefix)))
        if len(tokens) - int(known[:, 1].sum()) > TOLERANCE * len(texts):
            return None
        found.update(dict(known.iter_rows()))
    usual = Counter[str]()
    for word, rows in found.items():
        usual[_normalize_unit(word)] += rows
    common = [unit for unit, rows in usual.items() if rows > TOLERANCE * len(texts)]
    if not common:
        return _NO_UNITS
    if len(common) > 1 and (len(common) > _MAX_UNITS or texts.n_unique() <= _MIN_DISTINCT):
        return None
    spelt = tuple(sorted(word for word in found if _normalize_unit(word) in common)[:_MAX_SPELLINGS])
    coverage = sum(usual[unit] for unit in common) / len(texts)
    is_sign = common[0] in _CURRENCIES.values() or not any(map(str.isalpha, common[0]))
    if not is_sign and texts.n_unique() <= _MIN_DISTINCT:
        return None
    mixed = common[0] in _MAGNITUDES and coverage < 1 - TOLERANCE
    return _Units(spelt, max(spelt, key=found.__getitem__), coverage, several=len(common) > 1 or mixed)


def _normalize_unit(word: str) -> str:
    """One name for the spellings of a unit."""
    name = word.casefold().rstrip(".")
    name = name[:-1] if len(name) > 2 and name.endswith("s") else name
    return _CURRENCIES.get(name, "th" if name in _ORDINALS else name)


def _build_parse(style: Style, units: _Units) -> Parse:
    return Parse.model_validate({"decimal": style.decimal, "thousands": style.thousands, "symbols": units.spelt})


def _list_possible_styles(some: pl.Series, texts: pl.Series, units: _Units) -> list[Style]:
    """The styles whose signs occur, and that fit most of the first cells."""
    occurs = {sign: bool(texts.str.contains(sign, literal=True).any()) for sign in ",.' "}
    return [
        style
        for style in STYLES
        if ((not style.thousands or occurs[style.thousands]) and (style.decimal == "." or occurs[","]))
        or (style is EURO and occurs["."])
        if share_true(find_fitting(some, "float", _build_parse(style, units))) >= MAJORITY
    ]


def _extract_digits(texts: pl.Series, parse: Parse) -> pl.Series:
    """The digits of numbers, with their signs for decimals and thousands."""
    pattern = build_grammar(Column(name="cell", type="float", parse=parse)).number
    return texts.str.extract_groups(pattern).struct.field("digits").drop_nulls()


def _build_detected(texts: pl.Series, cells: pl.Series, styles: list[Style], units: _Units, hints: Hints) -> Detected:
    style, is_clear = _choose_style(texts, styles, units, hints)
    if style is None:
        return TEXT._replace(description=AMBIGUOUS, unclear="number")
    parse = _build_parse(style, units)
    digits = _extract_digits(texts, parse)
    if not units.spelt and digits.str.contains("^0[0-9]+$").any():
        return TEXT._replace(description="digits with leading zeros: a code, not a number", is_code=True)
    spaced = bool(cells.str.contains(r"^\s|\s$").any())
    words = [
        style.description,
        *([f"without {_quote_words(units.spelt)}"] if units.spelt else []),
        *(["spaces around"] if spaced else []),
    ]
    unit = "" if units.unit in _FOOTNOTES else units.unit
    found = Detected("float", ", ".join(words), parse, unit=unit, unclear="" if is_clear else "number")
    if units.spelt:
        return found._replace(unclear="scale") if _differ_in_scale(texts, parse, units) else found
    if _are_whole(digits, style.thousands):
        return _to_integer(texts, digits, found)
    if len(cells) > len(texts) and digits.str.contains(r"^[0-9]+\.0*$").all():
        # pandas writes an integer column that has gaps as 3.0.
        return found._replace(type="integer", description=f"{found.description}, written 3.0")
    return found


def _to_integer(texts: pl.Series, digits: pl.Series, found: Detected) -> Detected:
    if (digits.str.len_chars() > _DIGITS).any():
        values = parse_series(texts, found.column)[0]
        if (values.abs() > INTEGER_LIMIT).any():
            return CODE
    return found._replace(type="integer")


def _are_whole(digits: pl.Series, thousands: str) -> bool:
    if thousands:
        digits = digits.str.replace_all(thousands, "", literal=True)
    return bool(digits.str.contains("^[0-9]+$").all())


def _choose_style(texts: pl.Series, styles: list[Style], units: _Units, hints: Hints) -> tuple[Style | None, bool]:
    """The one style of several that fit, and whether the table shows it; None where it shows nothing."""
    if PLAIN in styles and EURO in styles and texts.str.contains(".", literal=True).any():
        verdict = _groups_thousands(texts, ".", units, hints)
        if verdict is None:
            return PLAIN, False
        return (EURO if verdict else PLAIN), True
    if COMMA in styles and ENGLISH in styles:
        verdict = _groups_thousands(texts, ",", units, hints)
        if verdict is None:
            return (COMMA, True) if hints.semicolons else (None, False)
        return (ENGLISH if verdict else COMMA), True
    same = [style for style in styles if not hints.decimal or style.decimal == hints.decimal]
    return (same or styles)[0], True


def _groups_thousands(texts: pl.Series, sign: str, units: _Units, hints: Hints) -> bool | None:
    """Whether `sign` groups thousands or starts decimals; None if the cells do not show it."""
    style = EURO if sign == "." else ENGLISH
    other = PLAIN if sign == "." else COMMA
    marked = texts.filter(texts.str.contains(sign, literal=True))
    as_groups, as_decimals = (find_fitting(marked, "float", _build_parse(each, units)) for each in (style, other))
    if (
        share_true(as_decimals & ~as_groups) >= _MIN_EVIDENCE_SHARE
        or share_true(~as_decimals & as_groups) >= _MIN_EVIDENCE_SHARE
    ):
        return share_true(as_groups) > share_true(as_decimals)
    unmarked = texts.filter(~texts.str.contains(sign, literal=True))
    if share_true(unmarked.str.contains("[0-9]{4}")) >= _MIN_EVIDENCE_SHARE:
        return False
    if hints.decimal:
        return hints.decimal != sign
    sure = _SURE_OF_SEMICOLONS if hints.semicolons and sign == "." else _SURE_ROWS
    return True if not unmarked.is_empty() and len(marked) >= sure else None


def _differ_in_scale(texts: pl.Series, parse: Parse, units: _Units) -> bool:
    """Whether numbers without the percent sign are shares of one, and those with it are not."""
    if units.unit != "%" or units.coverage >= 1 - TOLERANCE:
        return False
    values = parse_series(texts, Column(name="cell", type="float", parse=parse))[0].abs()
    signed = texts.str.contains("%", literal=True)
    most, median = values.filter(~signed).max(), values.filter(signed).median()
    return isinstance(most, float) and isinstance(median, float) and most <= 1.0 < median


def _quote_words(words: list[str] | tuple[str, ...]) -> str:
    return ", ".join(f"'{word}'" for word in words) if len(words) != 1 else words[0]
