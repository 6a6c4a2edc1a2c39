"""The model registry in MLflow: runs, versions and aliases. The only module that writes to MLflow."""

import json
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from flywheel_ml.core import bundle
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.metrics import HEADLINE, LOSS
from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import Settings
from flywheel_ml.model.evaluation.gate import GateResult
from flywheel_ml.model.registration import pyfunc, roles, store
from flywheel_ml.model.registration.roles import State
from flywheel_ml.utils.errors import ConfigError, GateRefusal, IntegrityError, ProjectError, PromotionConflict
from flywheel_ml.utils.files import (
    canonical_json,
    remove_folder,
    remove_leftovers,
    replacing_folder,
    sha256_file,
    write_json,
)
from flywheel_ml.utils.process import get_user_name, is_alive

if TYPE_CHECKING:
    from flywheel_ml.model.training.tune import Trial

CHAMPION, CHALLENGER = roles.CHAMPION, roles.CHALLENGER
DIGEST, GATES, REFUSED, ROLLED_BACK = roles.DIGEST_TAG, roles.GATES_TAG, roles.REFUSED_TAG, roles.ROLLED_BACK_TAG
OVERRIDE, PRUNED = "override", "pruned"
PLAN = "rollout"
"""Tag of the registered model that holds the running experiment."""
MODEL = "model"
BUNDLE = Path("artifacts", "bundle")
"""Path of the model in a run, and of the bundle in the model."""
REQUIREMENTS = ("numpy", "onnxruntime", "pandas", "pydantic", "pydantic-settings", "pyyaml")


class Version(NamedTuple):
    """A registered model."""

    number: str
    digest: str
    run_id: str
    refusal: str
    rolled_back: str
    metrics: Mapping[str, float]

    @property
    def passed(self) -> bool:
        """Whether the version passed every gate."""
        return not self.refusal


class Registry:
    """One project's experiment and registered model, both called `name`."""

    def __init__(self, client: MlflowClient, name: str, settings: Settings, project: Project | None) -> None:
        self._project = project
        self._client = client
        self._settings = settings
        self.name = name

    @classmethod
    def open(cls, settings: Settings, name: str, project: Project | None = None) -> Self:
        """Connect; a local store is created, migrated, or updated after its folder moved, by one process at a time.

        Args:
            settings: where the registry is.
            name: of the registered model.
            project: the project whose features are stored with each model.

        Raises:
            ConfigError: the tracking URI cannot be used.
        """
        with store.open_store(settings) as client:
            if client.get_experiment_by_name(name) is None:
                client.create_experiment(name, artifact_location=store.get_artifact_location(settings))
            try:
                client.get_registered_model(name)
            except MlflowException as error:
                if not _is_absent(error):
                    raise
                client.create_registered_model(name)
        return cls(client, name, settings, project)

    def find(self, digest: str, passed: bool | None = None) -> Version | None:
        """Find the newest version whose bundle has this manifest hash.

        Args:
            passed: required verdict of the gates; None accepts any.
        """
        found = [version for version in self.list_versions() if version.digest == digest]
        return next((version for version in found if passed is None or version.passed == passed), None)

    def list_versions(self) -> list[Version]:
        """List all versions, newest first."""
        found = self._client.search_model_versions(f"name = '{self.name}'")
        return [_to_version(version) for version in sorted(found, key=lambda version: -int(version.version))]

    def find_alias(self, alias: str) -> Version | None:
        """Find the version that holds an alias."""
        try:
            return _to_version(self._client.get_model_version_by_alias(self.name, alias))
        except MlflowException as error:
            # An unavailable store must not look like one without a champion.
            if not _is_absent(error):
                raise
            return None

    def get(self, number: str) -> Version:
        """Return one version.

        Raises:
            ProjectError: there is no version with this number.
        """
        try:
            return _to_version(self._client.get_model_version(self.name, number))
        except MlflowException as error:
            if not _is_absent(error):
                raise
            known = ", ".join(version.number for version in self.list_versions()) or "none"
            raise ProjectError(f"model '{self.name}' has no version '{number}'; known: {known}") from None

    def get_state(self, number: str) -> State:
        """Return the current state of a version; raises as `get` does."""
        version = self.get(number)
        holders = {alias: found for alias in (CHAMPION, CHALLENGER) if (found := self.find_alias(alias))}
        tags = self._client.get_model_version(self.name, number).tags
        champion = holders.get(CHAMPION)
        role = roles.get_role(number, tags, {alias: found.number for alias, found in holders.items()})
        leading = (champion.number, champion.digest) if champion else None
        return State(version.digest, role, leading, roles.get_refusal(tags))

    def register(
        self,
        path: Path,
        checks: Sequence[GateResult],
        params: Mapping[str, Any],
        lineage: Mapping[str, Any],
        reports: Sequence[Path],
        trials: "Sequence[Trial]" = (),
        selection: Mapping[str, float] | None = None,
    ) -> Version:
        """Log the run of a bundle and register the bundle with the gates' results, without an alias.

        A run that a crash left incomplete is marked as failed; the bundle is registered only once.

        Args:
            path: the bundle's folder.
            params: flat names and values, as logged.
            lineage: origin of the bundle; written next to it as lineage.json, and as tags.
            reports: files and folders logged with the model.
            trials: tuning trials; each becomes a nested run.
            selection: further metrics, of the candidates that competed.
        """
        manifest = bundle.verify(path)
        digest = sha256_file(path / bundle.MANIFEST)
        experiment = self._client.get_experiment_by_name(self.name)
        refused = "; ".join(f"{check.gate}: {check.reason}" for check in checks if not check.passed)
        self._fail_unfinished_runs(experiment.experiment_id)
        tags = {DIGEST: digest, **_get_owner_tags()}
        tags |= {key: str(value) for key, value in lineage.items()}
        run_id: str = self._client.create_run(experiment.experiment_id, tags=tags, run_name=digest[:8]).info.run_id
        now = int(datetime.now(UTC).timestamp() * 1000)
        metrics = {f"{part}.{name}": value for part, table in manifest.metrics.items() for name, value in table.items()}
        metrics |= selection or {}
        self._client.log_batch(
            run_id,
            metrics=[Metric(key, value, now, 0) for key, value in metrics.items()],
            params=[Param(key, str(value)) for key, value in params.items()],
            tags=[
                RunTag(f"gate.{check.gate}", f"{'passed' if check.passed else 'REFUSED'}: {check.reason}")
                for check in checks
            ],
        )
        for report in reports:
            log = self._client.log_artifacts if report.is_dir() else self._client.log_artifact
            log(run_id, str(report), report.name if report.is_dir() else None)
        for number, trial in enumerate(trials):
            self._log_trial(experiment.experiment_id, run_id, number, trial, f"validation.{LOSS[manifest.task]}")
        headline = HEADLINE[manifest.task]
        with tempfile.TemporaryDirectory() as scratch:
            self._save_model(path, Path(scratch), {**lineage, "run_id": run_id, "bundle_sha256": digest})
            self._client.log_artifacts(run_id, scratch)
        # The run ends before its version exists: a crash in between leaves no version whose run is unfinished.
        self._client.set_terminated(run_id)
        version = self._client.create_model_version(
            self.name,
            source=f"runs:/{run_id}/{MODEL}",
            run_id=run_id,
            tags={
                DIGEST: digest,
                GATES: "refused" if refused else "passed",
                **({headline: str(manifest.metrics["test"][headline])} if headline in manifest.metrics["test"] else {}),
                **({REFUSED: refused[:5000]} if refused else {}),
            },
            description=f"Refused: {refused}" if refused else "Passed every gate.",
        )
        return _to_version(version)

    def lock_registration(self) -> AbstractContextManager[object]:
        """Lock the registry against other registrations of this project."""
        return store.lock("registration", self._settings)

    def read_report(self, version: Version, name: str) -> Any:
        """Return the content of a JSON file in the reports of a version's run; None if it was not logged."""
        try:
            return mlflow.artifacts.load_dict(f"runs:/{version.run_id}/reports/{name}")
        except (MlflowException, OSError, ValueError):
            return None

    def prune(self, version: Version) -> None:
        """Remove the files of a version from a local store; `restore_files` brings them back."""
        files = self._find_local_files(version)
        if files is None or not files.parent.is_dir():
            return
        remove_leftovers(files.parent)
        if files.is_dir():
            self._client.set_model_version_tag(self.name, version.number, PRUNED, f"{datetime.now(UTC):%F}")
            remove_folder(files)

    def restore_files(self, version: Version, path: Path, lineage: Mapping[str, Any]) -> None:
        """Restore the files of a version in a local store from `path`, which holds the same bundle."""
        files = self._find_local_files(version)
        if files is None or _is_intact(files / BUNDLE, version.digest):
            return
        facts = {**lineage, "run_id": version.run_id, "bundle_sha256": version.digest}
        with tempfile.TemporaryDirectory() as scratch, replacing_folder(files) as part:
            self._save_model(path, Path(scratch), facts)
            shutil.copytree(Path(scratch, MODEL), part, dirs_exist_ok=True)
        self._client.delete_model_version_tag(self.name, version.number, PRUNED)

    def get_promotable(self, number: str, override: str = "") -> Version:
        """Return a version that may become champion: passed, already champion, or overridden with a reason.

        Raises:
            GateRefusal: a gate refused it.
        """
        version = self.get(number)
        if version.passed or override or self.find_alias(CHAMPION) == version:
            return version
        raise GateRefusal(
            f"version {number} was refused ({version.refusal}); train a better one, "
            f"or overrule the gates: make promote VERSION={number} OVERRIDE='your reason'"
        )

    def promote(self, number: str, expected: str | None, override: str = "", rolls_back: bool = False) -> Version:
        """Make a version champion if the current champion is `expected` (None: there is none).

        Args:
            override: reason to promote a version that a gate refused.
            rolls_back: whether only a person, not a run, may promote the former champion again.

        Raises:
            GateRefusal: a gate refused the version, and no `override` reason is given.
            PromotionConflict: someone else promoted in the meantime.
        """
        with store.lock("promotion", self._settings):
            version = self.get_promotable(number, override)
            champion = self.find_alias(CHAMPION)
            found = champion.number if champion else None
            if found != number:
                if found != expected:
                    raise PromotionConflict(
                        f"version {number} was not promoted: the champion is version {found or 'none'}, "
                        f"not {expected or 'none'} as expected; check `rollout status` and try again"
                    )
                if version.rolled_back:
                    self._client.delete_model_version_tag(self.name, number, ROLLED_BACK)
                if rolls_back and found:
                    self._client.set_model_version_tag(self.name, found, ROLLED_BACK, f"{get_user_name()}: {override}")
                if override and not version.passed:
                    self._client.set_model_version_tag(self.name, number, OVERRIDE, f"{get_user_name()}: {override}")
                # An experiment with the old champion does not apply to the new one. End it first, so that a crash
                # cannot leave it to resume with a later rollback.
                self.set_plan(None)
                self._client.set_registered_model_alias(self.name, CHAMPION, number)
            challenger = self.find_alias(CHALLENGER)
            if challenger and challenger.number == number:
                self._client.delete_registered_model_alias(self.name, CHALLENGER)
        return self.get(number)

    def set_challenger(self, number: str) -> Version:
        """Make a version challenger.

        Raises:
            GateRefusal: a gate refused the version.
        """
        version = self.get(number)
        if not version.passed:
            raise GateRefusal(f"version {number} was refused ({version.refusal}); it cannot challenge")
        self._client.set_registered_model_alias(self.name, CHALLENGER, number)
        return version

    def get_plan(self) -> Any:
        """Return the plan of the running experiment as `set_plan` stored it; None if there is none.

        Raises:
            ConfigError: the tag is not valid JSON.
        """
        text = self._client.get_registered_model(self.name).tags.get(PLAN)
        try:
            return json.loads(text) if text else None
        except ValueError:
            raise ConfigError(f"model '{self.name}': its tag '{PLAN}' is not JSON; `rollout abort` clears it") from None

    def set_plan(self, plan: Mapping[str, Any] | None) -> None:
        """Store the plan of an experiment for all serving folders; None ends the experiment."""
        self._client.set_registered_model_tag(self.name, PLAN, canonical_json(plan) if plan else "")

    def hold_lock(self) -> AbstractContextManager[object]:
        """Return the lock that `promote` takes, to read and change the plan in one step."""
        return store.lock("promotion", self._settings)

    def reject(self, number: str, reason: str) -> None:
        """Mark a version as rolled back, so that only a person uses it again; it is no longer challenger."""
        self._client.set_model_version_tag(self.name, number, ROLLED_BACK, f"{get_user_name()}: {reason}")
        challenger = self.find_alias(CHALLENGER)
        if challenger and challenger.number == number:
            self._client.delete_registered_model_alias(self.name, CHALLENGER)

    def readmit(self, number: str) -> None:
        """Undo `reject`, because a person uses the version again."""
        if self.get(number).rolled_back:
            self._client.delete_model_version_tag(self.name, number, ROLLED_BACK)

    def download(self, version: Version, path: Path) -> None:
        """Copy a version's bundle and its lineage.json into the folder `path`.

        Raises:
            ProjectError: the artifact store does not have it.
        """
        address = f"models:/{self.name}/{version.number}/artifacts/bundle"
        try:
            with tempfile.TemporaryDirectory() as scratch:
                found = mlflow.artifacts.download_artifacts(address, dst_path=scratch)
                shutil.copytree(found, path, dirs_exist_ok=True)
        except (MlflowException, OSError) as error:
            if pruned := self._client.get_model_version(self.name, version.number).tags.get(PRUNED):
                raise ProjectError(
                    f"the files of version {version.number} were removed on {pruned} (ML_KEEP_VERSIONS is "
                    f"{self._settings.keep_versions}); train it again from its commit, which its run in `make ui` names"
                ) from None
            reason = " ".join(str(error).split())
            raise ProjectError(
                f"{address} cannot be downloaded: {reason[:300]}; "
                "restore its files in the artifact store, or promote another version"
            ) from None

    def _log_trial(self, experiment: str, parent: str, number: int, trial: "Trial", measure: str) -> None:
        tags = {MLFLOW_PARENT_RUN_ID: parent, **_get_owner_tags()}
        run_id: str = self._client.create_run(experiment, tags=tags, run_name=f"trial {number}").info.run_id
        now = int(datetime.now(UTC).timestamp() * 1000)
        known = {measure: trial.loss, "seconds": trial.seconds}
        self._client.log_batch(
            run_id,
            metrics=[Metric(key, value, now, number) for key, value in known.items() if value is not None],
            params=[Param(key, str(value)) for key, value in trial.parameters.items()],
        )
        self._client.set_terminated(run_id)

    def _find_local_files(self, version: Version) -> Path | None:
        """Find the files of a version in a local store; None if the store may be shared."""
        if (
            store.get_artifact_location(self._settings) is None
            or "://" in self._settings.artifact_root
            or not version.run_id
        ):
            return None
        return Path(self._settings.artifact_root, version.run_id, "artifacts", MODEL)

    def _save_model(self, path: Path, scratch: Path, lineage: Mapping[str, Any]) -> None:
        library, project = Path(__file__).parents[2], self._project
        packages = [library, *([project.folder] if project else [])]
        script = scratch / "pyfunc_model.py"
        script.write_text(build_load_script(project), encoding="utf-8")
        copy = scratch / "bundle"
        shutil.copytree(path, copy)
        write_json(copy / bundle.LINEAGE, dict(lineage))
        code = [scratch / package.name for package in packages]
        for package, shipped in zip(packages, code, strict=True):
            shutil.copytree(package, shipped, ignore=shutil.ignore_patterns("__pycache__"))
        manifest = bundle.verify(path)
        with warnings.catch_warnings():
            # MLflow recommends inferring the signature from an example; ours comes from the contract.
            warnings.simplefilter("ignore", UserWarning)
            mlflow.pyfunc.save_model(
                scratch / MODEL,
                python_model=str(script),
                artifacts={"bundle": str(copy)},
                code_paths=[str(path) for path in code],
                signature=pyfunc.build_signature(Contract.load(path / bundle.CONTRACT, accept_renamed=True)),
                pip_requirements=[
                    f"mlflow=={mlflow.__version__}",
                    *(_pin_version(name, manifest.libraries) for name in REQUIREMENTS),
                ],
            )
        for spent in (script, copy, *code):
            shutil.rmtree(spent) if spent.is_dir() else spent.unlink()

    def _fail_unfinished_runs(self, experiment: str) -> None:
        mine = _get_owner_tags()
        for run in self._client.search_runs([experiment], "attributes.status = 'RUNNING'"):
            tags = run.data.tags
            same_place = all(tags.get(key) == mine[key] for key in ("user", "host"))
            if same_place and tags.get("pid", "").isdigit() and not is_alive(int(tags["pid"])):
                self._client.set_terminated(run.info.run_id, "FAILED")


def build_load_script(project: Project | None) -> str:
    """Build the script that MLflow runs to load a model; library and project package are stored with it."""
    features = f"from {project.package}.features import FEATURES\n" if project else "\nFEATURES = ()"
    return (
        "import mlflow\n\n"
        "from flywheel_ml.model.registration.pyfunc import BundleModel\n"
        f"{features}\n"
        "mlflow.models.set_model(BundleModel(FEATURES))\n"
    )


def _to_version(found: ModelVersion) -> Version:
    tags = found.tags
    metrics = {name: float(tags[name]) for name in set(HEADLINE.values()) if tags.get(name)}
    digest, run_id = tags.get(DIGEST, ""), found.run_id or ""
    return Version(str(found.version), digest, run_id, roles.get_refusal(tags), tags.get(ROLLED_BACK, ""), metrics)


def _is_intact(path: Path, digest: str) -> bool:
    try:
        bundle.verify(path, digest)
    except IntegrityError:
        return False
    return True


def _get_owner_tags() -> dict[str, str]:
    return {"user": get_user_name(), "host": socket.gethostname(), "pid": str(os.getpid())}


def _is_absent(error: MlflowException) -> bool:
    """Whether MLflow reports that something does not exist; aliases have an error code of their own."""
    return error.error_code in (ErrorCode.Name(RESOURCE_DOES_NOT_EXIST), ErrorCode.Name(INVALID_PARAMETER_VALUE))


def _pin_version(name: str, libraries: Mapping[str, str]) -> str:
    from importlib.metadata import version

    return f"{name}=={libraries.get(name) or version(name)}"
