"""What a window is compared with."""

from typing import NamedTuple, Self

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.params import TEST_ROWS
from flywheel_ml.core.profile import Profile


class Reference(NamedTuple):
    """The rows that a window is compared with.

    Attributes:
        name: as `monitor.reference` of params.yaml gives it.
        description: what the rows are, such as "the test rows".
        comparison: completes a sentence about a change, such as "since the model was tested".
        profile: their counts, in the bins of the model's own reference.
    """

    name: str
    description: str
    comparison: str
    profile: Profile

    @classmethod
    def of_test_rows(cls, bundle: Bundle) -> Self:
        """Return the rows that the model was tested on."""
        return cls(TEST_ROWS, "the test rows", "since the model was tested", bundle.profile)
