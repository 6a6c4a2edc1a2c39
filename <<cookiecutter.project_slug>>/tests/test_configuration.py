"""The configuration files agree with it: params.yaml, dvc.yaml, prefect.yaml."""

from pathlib import Path
from typing import Any

import grimp
import pytest
import yaml
from flywheel_ml.cli.stages import STAGES
from flywheel_ml.core import paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.project import import_reference
from prefect import Flow

from << cookiecutter.package_name >>.project import PROJECT

ROOT = Path(__file__).parents[1]


def read(name: str) -> Any:
    """A YAML file of the project."""
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_parameters_name_columns_of_the_contract(contract: Contract) -> None:
    params = PROJECT.load_params(ROOT / paths.PARAMS)
    named = {*params.evaluate.slices, *([params.split.group] if params.split.group else [])}
    assert named <= {column.name for column in contract.columns}


@pytest.mark.parametrize(
    "reference", [PROJECT.source, PROJECT.params, PROJECT.gates, PROJECT.alerts, PROJECT.sinks, PROJECT.app]
)
def test_part_that_the_project_names_is_importable(reference: str) -> None:
    assert import_reference(reference) is not None


def test_every_deployment_names_a_flow() -> None:
    for deployment in read("prefect.yaml")["deployments"]:
        module, _, name = deployment["entrypoint"].rpartition(".")
        assert isinstance(import_reference(f"{module}:{name}"), Flow)


@pytest.mark.parametrize("stage", STAGES)
def test_stage_lists_all_code_that_it_imports(stage: str) -> None:
    """Otherwise a change of that code would not rerun it. Gates decide after the stages."""
    package = PROJECT.package
    places = {"${lib}": "flywheel_ml", "${own}": package}
    deps = {
        dep.replace(mark, name).removesuffix(".py").replace("/", ".")
        for dep in read("dvc.yaml")["stages"][stage]["deps"]
        for mark, name in places.items()
        if mark in dep
    }
    imports = grimp.build_graph("flywheel_ml", package)
    used = {STAGES[stage]}
    used |= {f"{package}.params"} if stage != "validate" else set()
    used |= {f"{package}.{name}" for name in ("estimators", "features") if stage in ("train", "evaluate", "package")}
    used |= {upstream for module in tuple(used) for upstream in imports.find_upstream_modules(module)}
    # `params` imports the gates for the class of their thresholds, which no stage reads.
    gates = {"flywheel_ml.model.evaluation.gate"}
    gates |= imports.find_upstream_modules("flywheel_ml.model.evaluation.gate")
    free = {"flywheel_ml", package, f"{package}.gates", f"{package}.estimators"}
    free |= {module for module in gates if module.startswith("flywheel_ml.model")}
    missing = used - free
    assert [one for one in sorted(missing) if not any(f"{one}.".startswith(f"{dep}.") for dep in deps)] == []
