"""Opens the bundles of models: the champion's, any version's, and those that log rows name."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flywheel_ml.core import paths, serving_folder
from flywheel_ml.core.bundle import MANIFEST, Bundle
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import Settings
from flywheel_ml.monitoring.sources.profile_store import ModelKey
from flywheel_ml.prediction_log import Prediction
from flywheel_ml.utils.errors import ConfigError, IntegrityError, ProjectError
from flywheel_ml.utils.files import sha256_file

if TYPE_CHECKING:
    from flywheel_ml.model.registration.registry import Registry


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


def open_bundle_of(
    project: Project, logged: Prediction, settings: Settings, connect: Callable[[], "Registry"]
) -> Bundle:
    """Open the bundle that made a logged prediction, from the serving folder or, if it is not there, the registry.

    Args:
        project: the project, whose features the bundle needs.
        logged: the prediction, with the version and digest of its model.
        settings: the location of the serving folder.
        connect: opens the registry; called only if the serving folder lacks the bundle.

    Raises:
        ProjectError: neither has it.
    """
    version, digest = logged.model_version, logged.model_digest
    path, known = _find_served(settings.serving_folder, version, digest)
    gone = f"version {version}, which made prediction '{logged.id}', is "
    if path is None or not path.is_dir():
        gone += "no longer in the serving folder"
    else:
        try:
            return Bundle.open(path, known, project.features)
        except IntegrityError as error:
            gone += f"damaged in the serving folder ({error})"
    try:
        registry = connect()
        found = registry.find(digest) if digest else registry.get(version)
        if found is None:
            raise ProjectError(f"no version of '{registry.name}' has the sha256 {digest}")
        with tempfile.TemporaryDirectory() as scratch:
            registry.download(found, Path(scratch))
            return Bundle.open(Path(scratch), found.digest, project.features)
    except ProjectError as error:
        raise ProjectError(f"{gone}, and the registry does not have it: {error}") from None


def _find_served(folder: Path, version: str, digest: str | None) -> tuple[Path | None, str | None]:
    """Return the path of a model in the serving folder, and its digest if known.

    Rows that were logged before digests existed hold only a version number.
    """
    if digest is not None:
        return serving_folder.find_bundle(folder, digest), digest
    try:
        now = serving_folder.read_routing(folder)
        experiments = [one.ref for one in now.experiments]
    except ProjectError:
        refs = []
    else:
        refs = [ref for ref in (now.champion, now.previous, *experiments) if ref and ref.version == version]
    if refs:
        return serving_folder.bundle_folder(folder, refs[0]), refs[0].digest
    found = folder.joinpath(serving_folder.BUNDLES).glob(f"{version}*")
    return min((path for path in found if path.name.split("-")[0] == version), default=None), None
