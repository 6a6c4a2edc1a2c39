"""Runs first in MLflow's server and in the processes that it starts; see `model.alembic_paths`."""

from flywheel_ml.model.registration.alembic_paths import escape_percent

escape_percent()
