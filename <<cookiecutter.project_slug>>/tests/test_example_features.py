"""The example's own features."""

import numpy as np

from << cookiecutter.package_name >>.features import plane_age


def test_plane_age_is_years_from_manufacture_to_flight() -> None:
    moments = np.array(
        ["2013-01-01T05:15", "2013-12-31T23:59", "1969-07-20T20:17", "NaT", "2013-01-01"], "datetime64[us]"
    )
    ages = plane_age(moments, np.array([1999.0, 2013.0, 1960.0, 2000.0, np.nan]))
    np.testing.assert_array_equal(ages, [14.0, 0.0, 9.0, np.nan, np.nan])
