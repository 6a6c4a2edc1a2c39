"""Joins predictions with the labels of their entities.

An entity is what the contract's id column identifies, such as a customer or an order. A prediction takes the first
label of its entity whose timestamp is at or after the prediction's, and not more than a horizon after it. Several
predictions may share a label. A label that was sent for the prediction's own id takes precedence.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from flywheel_ml.prediction_log.rows import EntityOutcome, Outcome, Prediction

EntityLabels = Mapping[str, Sequence[EntityOutcome]]
"""The labels of each entity, in the order of their timestamps."""


def group_by_entity(found: Iterable[EntityOutcome]) -> EntityLabels:
    """Group labels by entity and sort them by time; of two labels at one time, the one that arrived first is kept."""
    groups: dict[str, dict[int, EntityOutcome]] = defaultdict(dict)
    for row in sorted(found, key=lambda row: (row.timestamp_us, row.arrived_us or 0)):
        groups[row.entity_id].setdefault(row.timestamp_us, row)
    return {entity: list(rows.values()) for entity, rows in groups.items()}


def find_label(
    prediction: Prediction, by_id: Mapping[str, Outcome], by_entity: EntityLabels, horizon_us: int | None
) -> Outcome | EntityOutcome | None:
    """Return the label of a prediction, or None.

    Args:
        prediction: the prediction.
        by_id: labels by prediction id.
        by_entity: labels by entity.
        horizon_us: how much later than the prediction an entity's label may be; None for any time.
    """
    if (own := by_id.get(prediction.id)) is not None:
        return own
    rows = by_entity.get(prediction.entity_id, ()) if prediction.entity_id is not None else ()
    at = bisect_left(rows, prediction.timestamp_us, key=lambda row: row.timestamp_us)
    if at == len(rows):
        return None
    if horizon_us is not None and rows[at].timestamp_us - prediction.timestamp_us > horizon_us:
        return None
    return rows[at]
