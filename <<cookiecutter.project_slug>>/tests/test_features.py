"""Every feature of the project, on synthetic rows: one number per row, which depends on that row alone."""

from collections.abc import Callable

import numpy as np
import pytest
from flywheel_ml.core.contract import Columns, Contract
from flywheel_ml.core.features import Featurizer

from << cookiecutter.package_name >>.features import FEATURES


@pytest.fixture(scope="module")
def compute(contract: Contract) -> Callable[[Columns], np.ndarray]:
    """Computes the features of n_rows, float [n_rows, n_features]."""
    featurizer = Featurizer(contract, FEATURES)

    def compute(columns: Columns) -> np.ndarray:
        encoded = featurizer.encode(columns).num
        places = [featurizer.numeric.index(feature.__name__) for feature in FEATURES]
        return encoded[:, places]

    return compute


@pytest.mark.attack("feature code")
def test_features_are_one_number_per_row(compute: Callable[[Columns], np.ndarray], columns: Columns) -> None:
    n_rows = len(next(iter(columns.values())))
    assert compute(columns).shape == (n_rows, len(FEATURES))


@pytest.mark.attack("feature code")
def test_features_of_a_row_depend_on_no_other_row(
    compute: Callable[[Columns], np.ndarray], columns: Columns, record_property: Callable[[str, object], None]
) -> None:
    """A mean over the table, for example, would differ between training and a single request."""
    record_property("features", " ".join(feature.__name__ for feature in FEATURES))
    whole = compute(columns)[:20]
    alone = [compute({name: values[at : at + 1] for name, values in columns.items()}) for at in range(20)]
    np.testing.assert_array_equal(np.concatenate(alone), whole)
