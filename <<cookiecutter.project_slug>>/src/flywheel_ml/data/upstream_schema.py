"""The schema of the raw table as it arrived, and how it differs from the previous run's."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from flywheel_ml.data.formats import reading
from flywheel_ml.utils import config_model

Schema = Mapping[str, str]
"""Column → type, as the file has them; a text file has strings only."""


class SchemaChanges(config_model.StrictModel):
    """Columns that were removed, added or retyped (`column: old → new`) since the previous run."""

    removed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    retyped: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is any change."""
        return bool(self.removed or self.added or self.retyped)

    def __str__(self) -> str:
        """All changes in one line; empty if there are none."""
        return "; ".join(_describe(self))


def read_schema(path: Path) -> Schema:
    """Read the schema of a table of any format; raises as `tables.read`."""
    with reading.open_table(str(path)) as found:
        types = found.rows.collect_schema().dtypes()
        return {name: str(kind) for name, kind in zip(found.columns, types, strict=True)}


def compare_schemas(before: Schema, after: Schema) -> SchemaChanges:
    """Compare two schemas; the order of the columns does not matter."""
    return SchemaChanges(
        removed=tuple(sorted(before.keys() - after.keys())),
        added=tuple(sorted(after.keys() - before.keys())),
        retyped=tuple(
            f"{name}: {before[name]} → {after[name]}"
            for name in sorted(before.keys() & after.keys())
            if before[name] != after[name]
        ),
    )


def _describe(changes: SchemaChanges) -> Iterator[str]:
    for verb, names in (("removed", changes.removed), ("added", changes.added), ("retyped", changes.retyped)):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            yield f"{verb} {', '.join(names[:5])}{more}"
