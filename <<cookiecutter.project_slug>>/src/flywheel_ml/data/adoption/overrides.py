"""Options that override adopt's own decisions."""

from collections.abc import Collection
from typing import Literal, NamedTuple

from flywheel_ml.data.formats.reading import normalize_name
from flywheel_ml.utils.config_model import suggest
from flywheel_ml.utils.errors import ConfigError

Task = Literal["binary", "multiclass", "regression"]
SplitMethod = Literal["time", "hash"]
NO_TIME = "none"


class Overrides(NamedTuple):
    """The command-line options; an empty one leaves the decision to adopt."""

    name: str = ""
    id: str = ""
    time: str = ""
    group: str = ""
    weight: str = ""
    ignore: tuple[str, ...] = ()
    feature: tuple[str, ...] = ()
    task: Task | None = None
    split: SplitMethod | None = None
    positive: str = ""
    keep_na: tuple[str, ...] = ()

    def normalize(self) -> "Overrides":
        """Normalise all column names, see `formats.reading.normalize_name`."""
        return self._replace(
            id=normalize_name(self.id),
            time=normalize_name(self.time),
            group=normalize_name(self.group),
            weight=normalize_name(self.weight),
            ignore=tuple(map(normalize_name, self.ignore)),
            feature=tuple(map(normalize_name, self.feature)),
            keep_na=tuple(map(normalize_name, self.keep_na)),
        )

    def check(self, target: str, known: Collection[str], nested: Collection[str] = ()) -> None:
        """Check the names against a table's columns; `nested` are those with lists, records or bytes.

        Raises:
            ConfigError: a column does not exist, or is given to two options.
        """
        options = {
            "target": (target,),
            "id": (self.id,),
            "time": (self.time if self.time != NO_TIME else "",),
            "group": (self.group,),
            "weight": (self.weight,),
            "ignore": self.ignore,
            "feature": self.feature,
        }
        if not target:
            raise ConfigError(f"--target: say which column to predict; {suggest(target, list(known))}")
        for name in self.keep_na:
            if name not in known:
                raise ConfigError(f"--keep-na: the table has no column '{name}'; {suggest(name, list(known))}")
        taken: dict[str, str] = {}
        for option, names in options.items():
            for name in filter(None, names):
                if name in nested:
                    raise ConfigError(f"--{option}: '{name}' holds lists, records or bytes; unfold it into columns")
                if name not in known:
                    raise ConfigError(f"--{option}: the table has no column '{name}'; {suggest(name, list(known))}")
                if name in taken:
                    raise ConfigError(
                        f"--{option}: the column '{name}' is given to --{taken[name]} too; give it to one"
                    )
                taken[name] = option
        if self.split == "time" and self.time == NO_TIME:
            raise ConfigError("--split time needs a time column, and --time none says that there is none")
