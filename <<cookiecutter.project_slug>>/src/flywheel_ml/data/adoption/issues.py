"""Detects data issues of a table before training, each with evidence and a remedy."""

import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Literal, NamedTuple

import numpy as np
import polars as pl

from flywheel_ml.data import split
from flywheel_ml.data.adoption import name_heuristics
from flywheel_ml.data.adoption.detection import dates, numbers
from flywheel_ml.data.adoption.detection.detected import clean_present_texts
from flywheel_ml.data.adoption.profiling import TableProfile
from flywheel_ml.utils.timestamps import LOCAL

Severity = Literal["refused", "warned", "handled"]
SEVERITIES: tuple[Severity, ...] = ("refused", "warned", "handled")

MIN_ROWS, FEW_ROWS = 20, 50
MIN_CLASS_ROWS, FEW_CLASS_ROWS = 2, 20
IMBALANCE = 0.01
NEAR_CONSTANT = 0.995
MANY_VALUES = 128
MIN_NUMBERED_SHARE = 0.25
"""Minimum share of distinct numbers for an unnamed column to count as a row counter."""
LEAKAGE_SCORE = 0.995
"""A column that alone exceeds this ROC AUC, accuracy or R² counts as leakage."""
SUSPICIOUS_SCORE = 0.98
"""Above this ROC AUC a single column gets a warning: honest columns of 30 public tables reach 0.976, leaks 0.990."""
LEAKAGE_P_VALUE = 0.01
"""Probability that any column unrelated to the target counts as leakage."""
_MAX_LEAKAGE_ROWS, _MAX_LEAKAGE_CELLS = 20_000, 20_000_000
_SURE_ROWS = 200
MAX_MISSING_SHARE = 0.1
"""Up to this share of missing values, the order of the others is compared with the target."""
_BINS, _MIN_ROWS_PER_BIN = 64, 8
_MIN_WORDS = 4
MAX_STRAY_SHARE = 0.1
"""Up to this share of other cells, a text column counts as numbers that need fixing."""
RANDOM_SPLIT = "without a time the split is random, and a model that is to predict the future looks better than it is"


class Issue(NamedTuple):
    """One data issue: kind, column (empty for the table), severity (what adopt does), evidence and remedy."""

    kind: str
    column: str
    severity: Severity
    evidence: str
    remedy: str


def detect_issues(
    profile: TableProfile,
    target: str,
    task: str,
    roles: Mapping[str, str],
    now: datetime,
    named: Mapping[str, str],
) -> list[Issue]:
    """Detect all issues except leakage, see `detect_leakage`."""
    return [
        *_detect_table_issues(profile),
        *_detect_target_issues(profile, target, task),
        *(issue for name in profile.columns for issue in _detect_column_issues(profile, name, roles[name], now)),
        *_detect_late_timestamps(profile, roles),
        *(
            Issue(
                "reserved name",
                new,
                "handled",
                f"'{old}' is reserved: scoring adds a column of that name",
                f"call it '{new}' in requests",
            )
            for old, new in named.items()
            if new != old
        ),
    ]


def _detect_table_issues(profile: TableProfile) -> Iterator[Issue]:
    rows = profile.rows
    if rows < FEW_ROWS:
        severity: Severity = "refused" if rows < MIN_ROWS else "warned"
        yield Issue("few rows", "", severity, f"{rows} rows", f"add rows: below {FEW_ROWS} metrics are unreliable")
    if profile.repeated:
        evidence = f"{profile.repeated:,} of {rows:,} rows repeat an earlier row in every column"
        remedy = "drop them if they are copies; the split keeps copies together"
        yield Issue("duplicate rows", "", "warned", evidence, remedy)
    for repair in profile.repairs:
        yield Issue(repair.kind, "", "handled", repair.evidence, repair.outcome)
    for name in profile.left_out:
        yield Issue("nested values", name, "handled", "lists, records or bytes", "left out; unfold it into columns")


def _detect_target_issues(profile: TableProfile, target: str, task: str) -> Iterator[Issue]:
    column = profile.columns[target]
    if column.missing:
        yield Issue(
            "target missing",
            target,
            "handled",
            f"missing in {column.missing:,} of {profile.rows:,} rows",
            "those rows are left out of training and counted",
        )
    if task == "regression" or not column.values:
        return
    yield from _detect_similar_labels(profile, target)
    rarest, count = min(column.values.items(), key=lambda found: found[1])
    if count < FEW_CLASS_ROWS:
        severity: Severity = "refused" if count < MIN_CLASS_ROWS else "warned"
        small = sum(other < FEW_CLASS_ROWS for other in column.values.values())
        evidence = f"'{rarest}' has {count} row{'s' if count != 1 else ''}" + (
            f", {small} classes have few" if small > 1 else ""
        )
        yield Issue(
            "small class", target, severity, evidence, "add rows of it, merge it with another class, or drop its rows"
        )
    share = count / sum(column.values.values())
    if task == "binary" and share < IMBALANCE:
        yield Issue(
            "imbalance",
            target,
            "warned",
            f"'{rarest}' is {share:.2%} of rows",
            "use PR AUC, and set evaluate.costs to the cost of each kind of error",
        )


def _detect_similar_labels(profile: TableProfile, name: str) -> Iterator[Issue]:
    groups = group_similar_labels(profile.columns[name].values or ())
    if groups:
        shown = "; ".join(" and ".join(f"'{label}'" for label in group) for group in groups[:3])
        remedy = "they are separate classes; if they mean the same, write them alike in the table and adopt it again"
        yield Issue("labels alike", name, "warned", f"only case or blanks differ: {shown}", remedy)


def _detect_column_issues(profile: TableProfile, name: str, role: str, now: datetime) -> Iterator[Issue]:
    column, values = profile.columns[name], profile.columns[name].values
    yield from _detect_cell_issues(profile, name, role)
    yield from _detect_value_issues(profile, name, role)
    if role == "weight":
        evidence = f"numbers from {column.minimum:g} to {column.maximum:g}"
        remedy = "weights rows in fitting and metrics and is not an input; --feature makes it one"
        yield Issue("sample weights", name, "handled", evidence, remedy)
    elif column.parse.type == "datetime":
        yield from _detect_timestamp_issues(profile, name, role, now)
    elif role == "feature" and column.parse.type == "string" and (values is None or len(values) > MANY_VALUES):
        yield _build_many_texts_issue(profile, name)
    elif role == "ignored":
        yield from _detect_name_issues(profile, name)


def _detect_value_issues(profile: TableProfile, name: str, role: str) -> Iterator[Issue]:
    """Detect columns without values, with nearly constant values, or with several spellings of one value."""
    column, values = profile.columns[name], profile.columns[name].values
    if not column.distinct and role == "ignored":
        yield Issue("all missing", name, "handled", "no value in any row", "ignored; drop it, or fix its source")
    elif column.distinct == 1 and role == "ignored" and not column.missing:
        yield Issue("constant", name, "handled", "the same value in every row", "ignored; drop it")
    elif values and role == "feature" and max(values.values()) >= NEAR_CONSTANT * profile.rows:
        usual = max(values, key=values.__getitem__)
        yield Issue(
            "near-constant",
            name,
            "warned",
            f"'{usual}' in {max(values.values()):,} of {profile.rows:,} rows",
            "--ignore it if the rest is noise",
        )
    if role == "feature" and values:
        yield from _detect_similar_labels(profile, name)


def _detect_cell_issues(profile: TableProfile, name: str, role: str) -> Iterator[Issue]:
    """Detect issues in how the cells of a column are written."""
    column, detected = profile.columns[name], profile.columns[name].parse
    if column.misfits:
        huge = all(_is_number(example) for example in column.examples)
        kind = "infinite or huge" if huge else "mixed types"
        severity: Severity = "warned" if role == "target" else "handled"
        count = f"{column.misfits:,} of {profile.rows:,} cells"
        evidence = f"{count} cannot be read as {detected.type}: {_quote_texts(column.examples)}"
        yield Issue(kind, name, severity, evidence, "they become missing")
    if detected.na:
        remedy = (
            f"--keep-na {name} keeps it as a value" if detected.parse.na_values else "clear those cells if it is not"
        )
        yield Issue("missing markers", name, "handled", detected.na, remedy)
    elif column.markers:
        counts = ", ".join(f"'{text}' in {rows:,}" for text, rows in column.markers.items())
        is_word = any(text in detected.parse.na_values for text in column.markers)
        remedy = "they are missing" + ("; write numbers if they mean some" if is_word else "")
        yield Issue("missing markers", name, "warned" if is_word else "handled", f"{counts} cells", remedy)
    if detected.unclear:
        yield _build_unclear_issue(name, detected.unclear, detected.description)
    elif detected.is_text and role != "target":
        yield from _detect_mixed_types(profile, name, role)
    elif (unit := _find_epoch_unit(profile, name)) and role != "target":
        evidence = f"{column.minimum} looks like {dates.describe_format(unit)}; {RANDOM_SPLIT}"
        yield Issue("looks like dates", name, "warned", evidence, "name the column timestamp, or write ISO 8601")
    if detected.time_zone == LOCAL:
        evidence = "offsets from UTC that no common time zone explains"
        yield Issue("time zones", name, "warned", evidence, "the wall-clock time as written; its offset is dropped")


def _build_unclear_issue(name: str, unclear: str, description: str) -> Issue:
    what, remedy = {
        "number": (f"thousands or decimals? taken as: {description}", "write plain numbers"),
        "date": (f"day or month first? taken as: {description}; no split by time follows from it", "write ISO 8601"),
        "unit": (description, "treated as text; write all in one unit"),
        "scale": (
            f"numbers without a percent sign lie between 0 and 1; taken as: {description}",
            "write all with it, or none",
        ),
        "dates": (f"{description}; {RANDOM_SPLIT}", "write ISO 8601, such as 2013-06-15"),
    }[unclear]
    return Issue("looks like dates" if unclear == "dates" else "ambiguous", name, "warned", what, remedy)


def _find_epoch_unit(profile: TableProfile, name: str) -> str:
    """Find the unit in which a column's integers would be timestamps of this century."""
    column = profile.columns[name]
    low, high = column.minimum, column.maximum
    if column.parse.is_code:
        values = profile.sample[name].cast(pl.Int64, strict=False)
        low, high = values.min(), values.max()
    elif column.parse.type != "integer":
        return ""
    return dates.find_epoch_unit(low, high) if isinstance(low, int) and isinstance(high, int) else ""


def _detect_mixed_types(profile: TableProfile, name: str, role: str) -> Iterator[Issue]:
    texts = profile.sample[name].drop_nulls()
    odd = numbers.find_non_numbers(clean_present_texts(texts))
    if odd is None:
        return
    # A column with few values, listed as categories, loses nothing.
    is_listed = role == "feature" and len(profile.columns[name].values or range(MANY_VALUES + 1)) <= MANY_VALUES
    if len(odd) <= MAX_STRAY_SHARE * len(texts) or not is_listed:
        shown = _quote_texts(odd.unique(maintain_order=True).head(3).to_list())
        evidence = f"{len(odd):,} of {len(texts):,} cells are not numbers: {shown}"
        yield Issue("mixed types", name, "warned", evidence, "treated as text; fix those cells to make it a number")


def _quote_texts(texts: Sequence[str]) -> str:
    return ", ".join(f"'{text}'" for text in texts)


def _detect_timestamp_issues(profile: TableProfile, name: str, role: str, now: datetime) -> Iterator[Issue]:
    column = profile.columns[name]
    if column.parse.description.startswith("date written"):
        yield Issue("dates as texts", name, "handled", column.parse.description, "read as timestamps")
    if (share := future_share(profile.sample[name], now)) > 0:
        yield Issue("future", name, "warned", f"{share:.1%} of rows are after now", "check the clock and the format")
    if role == "time" and column.backwards:
        evidence = f"{column.backwards:,} rows are earlier than the row before"
        yield Issue("time runs backwards", name, "handled", evidence, "rows are sorted by time before they are split")


def _build_many_texts_issue(profile: TableProfile, name: str) -> Issue:
    """Build the issue of an input with too many values to list."""
    texts, column = profile.sample[name], profile.columns[name]
    if is_free_text(texts):
        remedy = "its words are used if they help on the validation rows; --ignore drops it"
        return Issue("free text", name, "handled", f"{_mean_word_count(texts):.0f} words a row", remedy)
    remedy = "encoded as the target's mean per value, cross-fitted; --ignore drops it"
    return Issue("many values", name, "handled", f"{column.distinct:,} distinct texts", remedy)


def is_row_counter(profile: TableProfile, name: str) -> bool:
    """Whether a column numbers the rows, in their order or before rows were dropped or shuffled."""
    column, values = profile.columns[name], profile.sample[name]
    if column.parse.type != "integer" or column.missing or profile.rows < MIN_ROWS:
        return False
    is_sorted = values.is_sorted() or values.is_sorted(descending=True)
    if column.unique and is_sorted and column.maximum - column.minimum + 1 == profile.rows:
        return True
    if name_heuristics.is_unnamed(name):
        # Concatenated tables start counting again.
        return column.unique or column.distinct > profile.rows * MIN_NUMBERED_SHARE
    is_first = name == next(iter(profile.columns))
    return column.unique and is_sorted and is_first and name_heuristics.is_library_name(name)


def _detect_name_issues(profile: TableProfile, name: str) -> Iterator[Issue]:
    """Detect ignored columns that identify or describe rather than measure."""
    column, remedy = profile.columns[name], "ignored; --feature keeps it"
    if column.parse.type == "string" and not column.parse.unclear:
        if is_free_text(profile.sample[name]):
            yield Issue(
                "free text", name, "handled", f"{_mean_word_count(profile.sample[name]):.0f} words a row", remedy
            )
        elif column.values is None or len(column.values) > MANY_VALUES:
            yield Issue("many values", name, "handled", f"{column.distinct:,} distinct texts", remedy)
    elif is_row_counter(profile, name):
        yield Issue("row counter", name, "handled", "counts the rows; it measures nothing", remedy)
    elif column.parse.type == "integer" and (
        column.unique or (name_heuristics.is_identifier(name) and column.distinct > 1)
    ):
        yield Issue("id as number", name, "handled", "an identifier; it measures nothing", remedy)


def find_late_classes(profile: TableProfile, target: str, time: str, training: float) -> tuple[Issue, ...]:
    """Find classes without a training row in a split by time; `training` is the share of training rows."""
    rows = profile.sample.select(label=target, key=time).drop_nulls("label").sort("key")
    late = _find_classes_outside(profile, target, rows, rows["key"] < rows["key"][int(rows.height * training)])
    return tuple(
        Issue(
            "late class",
            target,
            "warned",
            f"'{label}' has {count:,} rows, the first at {first}: a split by time would train without it",
            "the split is by hash, which flatters where the future differs; drop these rows to split by time",
        )
        for label, count, first in late
    )


def find_grouped_classes(profile: TableProfile, target: str, group: str, training: float) -> tuple[Issue, ...]:
    """The classes of which no row is in the training part of a split by group."""
    rows = profile.sample.select(label=target, key=group).drop_nulls("label")
    outside = _find_classes_outside(profile, target, rows, split.hash_to_unit_interval(rows["key"]) <= training)
    return tuple(
        Issue(
            "class of few groups",
            target,
            "refused",
            f"'{label}' has {count:,} rows, all of '{group}' that the split keeps from training, such as {first}",
            f"--ignore {group} lets its rows be split; or drop the rows of the class",
        )
        for label, count, first in outside
    )


def _find_classes_outside(
    profile: TableProfile, target: str, rows: pl.DataFrame, is_training: pl.Series
) -> list[tuple[object, int, object]]:
    """Find classes without a training row: the label, its number of rows, and the key of the first."""
    if profile.columns[target].values is None:
        return []
    seen = rows.filter(is_training)["label"].unique()
    missed = rows.filter(~pl.col("label").is_in(seen.implode())).group_by("label", maintain_order=True)
    return missed.agg(pl.len().alias("rows"), pl.col("key").first()).rows()


def group_similar_labels(labels: Iterable[object]) -> list[list[str]]:
    """Group labels that differ only in case or blanks."""
    groups: dict[str, list[str]] = {}
    for label in sorted(label for label in labels if isinstance(label, str)):
        key = "".join(unicodedata.normalize("NFKC", label).casefold().split())
        groups.setdefault(key, []).append(label)
    return [group for group in groups.values() if len(group) > 1]


def detect_leakage(sample: pl.DataFrame, target: str, features: Sequence[str], task: str) -> list[Issue]:
    """Detect columns that reveal the target, on at most 20,000 rows.

    A column leaks if a model of it alone, fitted on half the rows, predicts the other half with a ROC AUC (binary),
    an accuracy (multi-class) or an R² (regression) beyond `LEAKAGE_SCORE`, or if its order is the target's; and
    if that is significant among all columns, at the level `LEAKAGE_P_VALUE`. Beyond `SUSPICIOUS_SCORE` it is a warning.
    """
    most = min(_MAX_LEAKAGE_ROWS, _MAX_LEAKAGE_CELLS // max(1, len(features)))
    rows = sample.gather_every(max(1, sample.height // most))
    if rows.height < MIN_ROWS or not features:
        return []
    labels = rows[target]
    half = np.random.default_rng(0).random(rows.height) < 0.5
    wanted = _encode_target(labels, task)
    codes = _bin_values(rows.select(features))
    found = []
    for name in features:
        score, measure, p_value = _score_alone(rows[name], codes[name].to_numpy(), wanted, half, task)
        is_asked = measure == "ROC AUC" and score > SUSPICIOUS_SCORE and rows.height >= _SURE_ROWS
        if (score > LEAKAGE_SCORE or is_asked) and p_value * len(features) < LEAKAGE_P_VALUE:
            copy = rows[name].dtype == labels.dtype and rows[name].equals(labels)
            evidence = "a copy of the target" if copy else f"{measure} {score:.3f} by itself"
            if copy or (score > LEAKAGE_SCORE and rows.height >= _SURE_ROWS):
                remedy = "ignored; --feature keeps it if it is known before the target is"
                found.append(Issue("leakage", name, "handled", evidence, remedy))
            else:
                remedy = "--ignore it if it is known only afterwards"
                found.append(Issue("leakage", name, "warned", evidence, remedy))
    return found


def _encode_target(labels: pl.Series, task: str) -> np.ndarray:
    """Class codes (int, from 0) or numbers, [n_rows]."""
    found: np.ndarray = labels.to_numpy() if task == "regression" else (labels.rank("dense") - 1).to_numpy()
    return found.astype(np.float64 if task == "regression" else np.int64)


def _score_alone(
    values: pl.Series, codes: np.ndarray, wanted: np.ndarray, half: np.ndarray, task: str
) -> tuple[float, str, float]:
    """Score how well one column predicts the target: the score, its metric, and the p-value for an unrelated column.

    The bounds of the probability hold for any number of rows: Mann & Whitney 1947 for the ROC AUC, in its normal form,
    whose tail is the heavier one; Chernoff 1952 for the accuracy.
    """
    if task == "regression":
        if values.dtype.is_numeric() and (order := _rank_correlation(values, wanted)) > LEAKAGE_SCORE:
            return order, "rank correlation", 0.0
        return _binned_r2(codes, wanted, half), "R²", 0.0
    if int(wanted.max()) + 1 == 2:
        found = [(_binned_roc_auc(codes, wanted, half), wanted[~half])]
        if values.dtype.is_numeric() and values.null_count() < MAX_MISSING_SHARE * len(values):
            # Without binning, in either direction.
            held = values.is_not_null().to_numpy()
            auc = _roc_auc(values.drop_nulls().to_numpy(), wanted[held])
            found.append((max(auc, 1 - auc), wanted[held]))
        score, scored = max(found, key=lambda one: one[0])
        positives, negatives = int(scored.sum()), int((1 - scored).sum())
        deviation = math.sqrt((positives + negatives + 1) / (12 * max(1, positives * negatives)))
        return score, "ROC AUC", math.erfc((score - 0.5) / deviation / math.sqrt(2))
    right, most = _binned_accuracy(codes, wanted, half)
    score = right if 1 - right < (1 - most) / 4 else 0.0
    return score, "accuracy", _chernoff_bound(right, most, int((~half).sum()))


def _chernoff_bound(share: float, expected: float, trials: int) -> float:
    """Upper bound of the probability that at least this share of trials succeeds."""
    if share <= expected:
        return 1.0
    apart = share * math.log(share / expected)
    if share < 1:
        apart += (1 - share) * math.log((1 - share) / (1 - expected))
    return math.exp(-trials * apart)


def _binned_r2(codes: np.ndarray, wanted: np.ndarray, half: np.ndarray) -> float:
    n_bins = int(codes.max()) + 1
    if n_bins > len(codes) // 4:
        return 0.0
    sums, counts = np.bincount(codes[half], wanted[half], n_bins), np.bincount(codes[half], minlength=n_bins)
    means = np.where(counts, sums / np.maximum(counts, 1), wanted[half].mean())
    rest = ((wanted[~half] - means[codes[~half]]) ** 2).sum()
    spread = ((wanted[~half] - wanted[~half].mean()) ** 2).sum()
    return float(1 - rest / spread) if spread else 0.0


def _binned_roc_auc(codes: np.ndarray, wanted: np.ndarray, half: np.ndarray) -> float:
    counts = _count_by_bin(codes, wanted, half)
    rates = (counts[:, 1] + 0.5) / (counts.sum(axis=1) + 1)
    return _roc_auc(rates[codes[~half]], wanted[~half])


def _binned_accuracy(codes: np.ndarray, wanted: np.ndarray, half: np.ndarray) -> tuple[float, float]:
    """Accuracy of each bin's most frequent class, and of the overall most frequent class."""
    right = float((_count_by_bin(codes, wanted, half).argmax(axis=1)[codes[~half]] == wanted[~half]).mean())
    return right, float(np.bincount(wanted[~half]).max() / (~half).sum())


def _count_by_bin(codes: np.ndarray, wanted: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Count rows per bin and class, [n_bins, n_classes]; all zero if there are too many bins to learn from."""
    n_bins, n_classes = int(codes.max()) + 1, int(wanted.max()) + 1
    if n_bins > len(codes) // 4:
        return np.zeros((n_bins, n_classes))
    counts = np.bincount(codes[half] * n_classes + wanted[half], minlength=n_bins * n_classes)
    return counts.reshape(n_bins, n_classes)


def _bin_values(rows: pl.DataFrame) -> pl.DataFrame:
    """The bin of each value, int: its own where there are few distinct ones, else a quantile; 0 for missing."""
    distinct = rows.select(pl.all().n_unique()).row(0, named=True)
    bins = min(_BINS, rows.height // _MIN_ROWS_PER_BIN)
    few = [name for name, kind in rows.schema.items() if distinct[name] <= bins or kind == pl.String]
    many = list(set(rows.columns) - set(few))
    return rows.select(
        pl.col(few).rank("dense").fill_null(0).cast(pl.Int64),
        (pl.col(many).rank() / (rows.height + 1) * bins).floor().cast(pl.Int64).fill_null(-1) + 1,
    )


def _rank_correlation(values: pl.Series, wanted: np.ndarray) -> float:
    pairs = pl.DataFrame({"a": values.cast(pl.Float64), "b": wanted}).drop_nulls()
    if pairs.height < MIN_ROWS or pairs["a"].n_unique() < 3:
        return 0.0
    found = pairs.select(pl.corr(pl.col("a").rank(), pl.col("b").rank())).item()
    # Not 0.995: length and weight of one thing may well agree as closely as that.
    return abs(found) if found is not None and abs(found) > 0.999 else 0.0


def _roc_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve by ranks (Mann & Whitney 1947); 0 without a row of either class.

    scikit-learn's `roc_auc_score` takes 5.5 ms for 20,000 rows, this 1.2 ms, once or twice a column. To import it
    takes 1 s, as long as everything that `adopt` imports.
    """
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return 0.0
    ranks = pl.Series(scores).rank("average").to_numpy()
    return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _detect_late_timestamps(profile: TableProfile, roles: Mapping[str, str]) -> Iterator[Issue]:
    time = next((name for name, role in roles.items() if role == "time"), None)
    if time is None:
        return
    for name, column in profile.columns.items():
        if column.parse.type == "datetime" and roles[name] == "feature":
            later = (profile.sample[name] > profile.sample[time]).mean() or 0.0
            if isinstance(later, float) and later > 0.5:
                yield Issue(
                    "known too late",
                    name,
                    "warned",
                    f"later than '{time}' in {later:.0%} of rows",
                    "--ignore it if it is written only after the prediction is wanted",
                )


def future_share(timestamps: pl.Series, now: datetime) -> float:
    """Share of timestamps in the future."""
    return float((timestamps > now).mean() or 0.0)  # type: ignore[arg-type]


def is_free_text(texts: pl.Series) -> bool:
    """Whether texts are sentences rather than names: several words each, and rarely repeated."""
    return _mean_word_count(texts) >= _MIN_WORDS and texts.n_unique() > 0.5 * len(texts)


def _mean_word_count(texts: pl.Series) -> float:
    found = texts.head(2000).str.count_matches(r"\S+").mean()
    return float(found) if isinstance(found, float) else 0.0


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
