"""Manual tests: what a person tested and documented in manual_tests.yaml, which counts half.

- test: model.inclusion
  at: 2026-11-29
  by: A. Reviewer
  result: recall differs by 2 points between the groups; see docs/fairness.md
"""

from datetime import date, timedelta
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError

from flywheel_ml.flows.versioning import git
from flywheel_ml.utils.config_model import StrictModel
from flywheel_ml.utils.errors import ConfigError

FILE = Path("manual_tests.yaml")
MAX_AGE = timedelta(days=90)


class ManualTest(StrictModel):
    """A documented manual test; `test` is the id of the check."""

    test: str
    at: date
    by: str = Field(min_length=2)
    result: str = Field(min_length=10)

    def find_problem(self, today: date) -> str:
        """Return why it does not count; empty if it does."""
        if self.at > today:
            return f"the manual test is dated {self.at}, which is in the future"
        if today - self.at > MAX_AGE:
            return f"the manual test is {(today - self.at).days} days old, allowed {MAX_AGE.days}"
        is_committed = git.has_path("HEAD", str(FILE)) and not git.list_changed(str(FILE))
        return "" if is_committed else f"{FILE} is not committed"


def read_manual_tests() -> dict[str, ManualTest]:
    """Read the manual tests, the newest of each check.

    Raises:
        ConfigError: the file is malformed.
    """
    import yaml

    if not FILE.is_file():
        return {}
    try:
        content = yaml.safe_load(FILE.read_text(encoding="utf-8")) or []
        found = TypeAdapter(list[ManualTest]).validate_python(content)
    except (yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"{FILE}: {' '.join(str(error).split())[:200]}; see docs/ml-test-score.md") from None
    return {one.test: one for one in sorted(found, key=lambda one: one.at)}
