"""Finds the bundle that made a logged prediction."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flywheel_ml.core import serving_folder
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import Settings
from flywheel_ml.prediction_log import Prediction
from flywheel_ml.utils.errors import IntegrityError, ProjectError

if TYPE_CHECKING:
    from flywheel_ml.model.registration.registry import Registry


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
        experiments = [variant.ref for variant in (now.challenger, now.shadow) if variant]
    except ProjectError:
        refs = []
    else:
        refs = [ref for ref in (now.champion, now.previous, *experiments) if ref and ref.version == version]
    if refs:
        return serving_folder.bundle_folder(folder, refs[0]), refs[0].digest
    found = folder.joinpath(serving_folder.BUNDLES).glob(f"{version}*")
    return min((path for path in found if path.name.split("-")[0] == version), default=None), None
