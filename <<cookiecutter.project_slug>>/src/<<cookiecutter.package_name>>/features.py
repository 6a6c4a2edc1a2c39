"""Your own features: one function each, and its row in `FEATURES`.

A function names contract columns as its parameters, takes them as arrays of n_rows, and returns one number per row as
float (NaN for missing). A column `size (m2)` is the parameter `size__m2_`. Training, batch
scoring, streams and the API all call this same function, so what it computes cannot differ between them.

A bundle remembers the definition of every function it was trained with and refuses to run with another one.
To change a feature that a served model uses, add a new function under a new name.
"""

import numpy as np
from flywheel_ml.core.features import Feature


def plane_age(scheduled_departure: np.ndarray, plane_year: np.ndarray) -> np.ndarray:
    """Years between the plane's manufacture and the flight."""
    flight_year = scheduled_departure.astype("datetime64[Y]").astype(np.float64) + 1970
    return np.where(np.isnat(scheduled_departure), np.nan, flight_year - plane_year)


FEATURES: tuple[Feature, ...] = (plane_age,)
