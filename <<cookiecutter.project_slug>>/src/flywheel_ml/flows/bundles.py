"""Opens the bundles of models: the champion's, any version's, and those that log rows name."""

import tempfile
from pathlib import Path

from flywheel_ml.core import paths, serving_folder
from flywheel_ml.core.bundle import MANIFEST, Bundle
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import Settings
from flywheel_ml.monitoring.sources.profile_store import ModelKey
from flywheel_ml.utils.errors import ConfigError, IntegrityError, ProjectError
from flywheel_ml.utils.files import sha256_file


def open_champion(project: Project, settings: Settings) -> tuple[str, Bundle]:
    """Open the champion of the serving folder; return its version and verified bundle.

    Raises:
        ProjectError: no version is rolled out.
    """
    now = serving_folder.read_routing(settings.serving_folder)
    if now.champion is None:
        raise ProjectError("the serving folder has no champion; run the training flow first")
    path = serving_folder.bundle_folder(settings.serving_folder, now.champion)
    return now.champion.version, Bundle.open(path, now.champion.digest, project.features)


def open_version(project: Project, settings: Settings, number: str) -> Bundle:
    """Open the bundle of a version in the registry: from the serving folder if it is there, or by downloading it.

    Raises:
        ProjectError: the registry has no such version, or its files are lost.
    """
    from flywheel_ml.model.registration.registry import Registry

    registry = Registry.open(settings, Contract.load(paths.CONTRACT).name, project)
    version = registry.get(number)
    if (served := serving_folder.find_bundle(settings.serving_folder, version.digest)) is not None:
        return Bundle.open(served, version.digest, project.features)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "bundle"
        registry.download(version, path)
        bundle = Bundle.open(path, version.digest, project.features)
        _ = bundle.profile  # Read before the folder is deleted.
    return bundle


def find_logged(project: Project, settings: Settings, model: ModelKey) -> Bundle | None:
    """Find the bundle of a model that log rows name, in the serving folder; None if it cannot be used.

    The serving folder keeps the bundles that the log names. Rows without a digest are the version's if only one bundle
    has this version.
    """
    folder = settings.serving_folder
    if model.digest is not None:
        path = serving_folder.find_bundle(folder, model.digest)
    else:
        found = [one.parent for one in (folder / serving_folder.BUNDLES).glob(f"*/{MANIFEST}")]
        named = [one for one in found if one.name.rpartition("-")[0] == model.version or one.name == model.version]
        path = named[0] if len(named) == 1 else None
    if path is None:
        return None
    try:
        return Bundle.open(path, model.digest or sha256_file(path / MANIFEST), project.features)
    except (IntegrityError, ConfigError, OSError):
        return None
