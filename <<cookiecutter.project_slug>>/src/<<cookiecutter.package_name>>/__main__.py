"""The command line of this project."""

from typing import NoReturn

from flywheel_ml.cli import entrypoint


def main() -> NoReturn:
    """Run a verb; `--help` lists them."""
    entrypoint.main(f"{__package__}.project:PROJECT")


if __name__ == "__main__":
    main()
