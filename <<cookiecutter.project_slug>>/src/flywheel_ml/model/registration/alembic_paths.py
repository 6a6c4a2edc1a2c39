"""MLflow's migrations in a folder whose path has a `%`, which alembic takes for the beginning of a placeholder."""

from pathlib import Path

from alembic.config import Config


def escape_percent() -> None:
    """Make alembic accept migration folders with a `%` in their path; may be called repeatedly."""
    set_main_option = Config.set_main_option
    if "%" not in __file__ or set_main_option.__module__ == __name__:
        return

    def escaped(self: Config, name: str, value: str) -> None:
        is_folder = name == "script_location" and Path(value).is_dir()
        set_main_option(self, name, value.replace("%", "%%") if is_folder else value)

    Config.set_main_option = escaped  # type: ignore[method-assign]
