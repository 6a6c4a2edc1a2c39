"""Runs before anything else in MLflow's server and the processes that it starts; see `model.alembic_paths`."""

from importlib import import_module
from pathlib import Path

import_module(f"{Path(__file__).parents[2].name}.model.alembic_paths").escape_percent()
