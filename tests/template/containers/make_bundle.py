"""Trains a small model on synthetic rows of a project's contract; runs in the project's folder.

Arguments: the project's package, and the serving folder to write with the model as champion.
"""

import sys
from importlib import import_module
from pathlib import Path

from flywheel_ml.core import paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.testing.bundles import make_bundle
from flywheel_ml.testing.rows import make_table
from flywheel_ml.testing.servers import ServingFolder


def main(package: str, output: Path) -> None:
    project = import_module(f"{package}.project").PROJECT
    contract, params = Contract.load(paths.CONTRACT), project.load_params()
    quick = params.train.hist_gradient_boosting.model_copy(update={"max_iter": 10})
    days = {"validation_days": 20, "test_days": 20}
    train = {"hist_gradient_boosting": quick, "sklearn_default": False}
    groups = {"split": days, "train": train, "evaluate": {"min_slice_rows": 20}}
    small = params.model_copy(
        update={
            name: getattr(params, name).model_copy(update=values) for name, values in groups.items()
        }
    )
    scratch = output.with_name("made") / "bundle"
    made = make_bundle(scratch, make_table(contract, 1500), contract, small, project.features)
    ServingFolder(output, made).roll_out("1")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
