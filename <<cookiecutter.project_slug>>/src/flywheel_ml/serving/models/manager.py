"""Polls the serving folder, and swaps models without dropping a request."""

import ctypes
import gc
import math
import os
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import structlog

from flywheel_ml.core import serving_folder
from flywheel_ml.core.bundle import LINEAGE, Bundle, verify
from flywheel_ml.core.contract import columns_from_rows
from flywheel_ml.core.features import Feature
from flywheel_ml.core.serving_folder import BundleRef, Challenger, Routing, Shadow
from flywheel_ml.serving.models.served_model import Deployment, RunningExperiment, ServedModel, Variant
from flywheel_ml.serving.observability.logs import describe_error
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.serving.schema.request_schema import Schema
from flywheel_ml.utils.errors import ConfigError, ProjectError
from flywheel_ml.utils.file_watcher import POLL_SECONDS, FileSignature, file_signature, poll
from flywheel_ml.utils.files import read_json

MAX_RELEASE_SECONDS = 60.0
"""Maximum wait between two checks whether a retired model was freed; the first wait is `POLL_SECONDS`."""

Signature = tuple[FileSignature, ...]


@dataclass(frozen=True)
class Rejection:
    """A bundle (or, without a version, a routing file) that was rejected."""

    version: str | None
    reason: str
    at: datetime


class ModelManager:
    """Keeps `deployment` in line with the serving folder, as far as its bundles pass verification.

    If the champion is rejected, the model in memory stays in service. Without one, the previous model answers as
    fallback, then the class prior of either. If none can be loaded, `deployment` is None until the folder is valid.
    A rejected challenger or shadow does not affect the champion.

    Attributes:
        deployment: what is in service.
        rejections: why parts of the serving folder were rejected; `last_rejection` is the first of them.
    """

    def __init__(
        self,
        folder: Path,
        max_instances: int,
        metrics: Metrics,
        log: structlog.typing.FilteringBoundLogger,
        features: Sequence[Feature] = (),
    ) -> None:
        self.deployment: Deployment | None = None
        self.last_rejection: Rejection | None = None
        self.rejections: tuple[Rejection, ...] = ()
        self._folder = folder
        self._max_instances = max_instances
        self._features = features
        self._metrics = metrics
        self._log = log
        self._refs: tuple[BundleRef, ...] = ()
        self._last_signature: Signature | None = None
        self._retired: list[weakref.ref[Bundle]] = []
        self._release_wait, self._release_at = POLL_SECONDS, 0.0

    async def poll(self) -> None:
        """Poll the folder, for ever."""
        await poll(self.refresh, lambda error: self._log.error("serving_folder", **describe_error(error)))

    def refresh(self) -> None:
        """Load what changed; blocking. A bundle that fails verification is rejected; no error is raised."""
        # Taken before reading, so that a change during loading is seen at the next poll.
        signature = self._read_signature()
        self._release_memory()
        if signature == self._last_signature:
            return
        try:
            routing = serving_folder.read_routing(self._folder)
        except ProjectError as error:
            self._report([Rejection(None, str(error), datetime.now(UTC))])
        else:
            experiments = (one.ref for one in routing.experiments)
            self._refs = tuple(ref for ref in (routing.champion, routing.previous, *experiments) if ref is not None)
            self._deploy(routing)
        self._last_signature = signature if signature == self._read_signature() else None

    @property
    def _model(self) -> ServedModel | None:
        """The model in memory, unless it is only a class prior."""
        return None if self.deployment is None or self.deployment.model.is_prior else self.deployment.model

    def _deploy(self, routing: Routing) -> None:
        rejections: list[Rejection] = []
        before, found = self.deployment, self._build_deployment(routing, rejections)
        if found is not None and (before is None or before.model.bundle is not found.model.bundle):
            model = found.model
            self._metrics.models.loaded.inc()
            self._log.info("bundle_loaded", version=model.ref.version, digest=model.ref.digest, variant=model.variant)
        self._report(rejections)  # First, so that a caller never sees a rejected model without its reason.
        self.deployment = found
        kept = found.experiments if found else []
        for experiment in before.experiments if before else []:
            if experiment not in kept:
                experiment.close()
        self._retire(before, found)
        self._metrics.models.set_experiments(
            {(one.model.ref.version, one.model.variant): one.paused is not None for one in kept}
        )
        self._metrics.models.set_share(math.fsum(one.share for one in routing.challengers) or None)
        if found is None:
            self._metrics.models.clear_serving()
        else:
            self._publish_metrics(found.model)

    def _publish_metrics(self, model: ServedModel) -> None:
        made_at = _read_trained_at(serving_folder.bundle_folder(self._folder, model.ref)) or model.loaded_at
        name = model.bundle.manifest.name
        self._metrics.models.set_serving(name, model.ref.version, model.ref.digest, model.variant, made_at.timestamp())

    def _build_deployment(self, routing: Routing, rejections: list[Rejection]) -> Deployment | None:
        found = self._try_load(routing.champion, "champion", rejections)
        if found is None and self._model is not None and routing.champion is not None:
            same = self._model.ref == routing.champion
            found = replace(self._model, variant="champion" if same else "fallback")
        found = found or self._try_load(routing.previous, "fallback", rejections)
        found = found or self._open_prior(routing.champion) or self._open_prior(routing.previous)
        if found is None:
            return None
        if found.variant != "champion":  # No experiments run alongside a fallback.
            return Deployment(found, routing)
        started = [self._start_experiment(found, one, "challenger", rejections) for one in routing.challengers]
        shadow = self._start_experiment(found, routing.shadow, "shadow", rejections) if routing.shadow else None
        return Deployment(found, routing, tuple(one for one in started if one is not None), shadow)

    def _retire(self, before: Deployment | None, found: Deployment | None) -> None:
        """Remember bundles that left service; requests that began with them still complete."""
        bundles = {id(one): one for one in _list_bundles(before)}
        gone = [one for key, one in bundles.items() if key not in set(map(id, _list_bundles(found)))]
        if gone:
            self._retired += map(weakref.ref, gone)
            self._release_wait, self._release_at = POLL_SECONDS, 0.0

    def _release_memory(self) -> None:
        """Return the memory of retired models to the system once nothing references them.

        The server collects garbage so rarely that a failed request could otherwise keep its model alive for days.
        """
        if not self._retired or time.monotonic() < self._release_at:
            return
        gc.collect()
        self._retired = [one for one in self._retired if one() is not None]
        _give_back_memory()
        if self._retired:
            self._release_wait = min(2 * self._release_wait, MAX_RELEASE_SECONDS)
            self._release_at = time.monotonic() + self._release_wait

    def _start_experiment(
        self, champion: ServedModel, spec: Challenger | Shadow, variant: Variant, rejections: list[Rejection]
    ) -> RunningExperiment | None:
        path = serving_folder.bundle_folder(self._folder, spec.ref)
        running = [one for one in (self.deployment.experiments if self.deployment else []) if one.is_same(spec)]
        try:
            if running:
                verify(path, spec.ref.digest)
                running[0].spec = spec
                return running[0]
            bundle = Bundle.open(path, spec.ref.digest, self._features)
            if incompatibility := serving_folder.find_incompatibility(champion.bundle.contract, bundle.contract):
                raise ConfigError(f"version {spec.ref.version} cannot run alongside the champion: {incompatibility}")
            # Rows are validated by the champion's contract, so the model must answer that contract's typical row.
            bundle.predict(columns_from_rows(bundle.contract.inputs, [champion.schema.example]))
        except Exception as error:
            rejections.append(self._build_rejection(spec.ref, path, error))
            return None
        self._log.info("experiment_started", version=spec.ref.version, digest=spec.ref.digest, variant=variant)
        model = ServedModel(bundle, spec.ref, champion.schema, variant, datetime.now(UTC))
        return RunningExperiment(model, spec, self._on_pause)

    def _on_pause(self, experiment: RunningExperiment, reason: str) -> None:
        model = experiment.model
        self._metrics.models.count_paused(model.ref.version, model.variant)
        self._log.error("experiment_paused", version=model.ref.version, variant=model.variant, reason=reason)

    def _open_prior(self, ref: BundleRef | None) -> ServedModel | None:
        if ref is None:
            return None
        now = self.deployment.model if self.deployment else None
        if now is not None and now.is_prior and now.ref == ref:
            return now
        path = serving_folder.bundle_folder(self._folder, ref)
        try:
            bundle = Bundle.open_prior(path, ref.digest, self._features)
            schema = Schema(bundle.contract, bundle.read_profile(), self._max_instances, bundle.unused)
        except Exception:  # The reason was already reported when the whole bundle was rejected.
            return None
        return ServedModel(bundle, ref, schema, "fallback", datetime.now(UTC), is_prior=True)

    def _try_load(self, ref: BundleRef | None, variant: Variant, rejections: list[Rejection]) -> ServedModel | None:
        if ref is None:
            return None
        path = serving_folder.bundle_folder(self._folder, ref)
        try:
            if self._model is not None and self._model.ref == ref:
                verify(path, ref.digest)
                return self._model if self._model.variant == variant else replace(self._model, variant=variant)
            return self._load(path, ref, variant)
        except Exception as error:
            rejections.append(self._build_rejection(ref, path, error))
            return None

    @staticmethod
    def _build_rejection(ref: BundleRef, path: Path, error: Exception) -> Rejection:
        # Callers see the version, not the path on this machine.
        reason = str(error).replace(str(path), ref.version) if isinstance(error, ProjectError) else type(error).__name__
        return Rejection(ref.version, reason, datetime.now(UTC))

    def _load(self, path: Path, ref: BundleRef, variant: Variant) -> ServedModel:
        bundle = Bundle.open(path, ref.digest, self._features)
        schema = Schema(bundle.contract, bundle.read_profile(), self._max_instances, bundle.unused)
        # A model that cannot answer a typical row is rejected here, not discovered by the first caller.
        bundle.predict(columns_from_rows(bundle.contract.inputs, [schema.example]))
        _give_back_memory()
        return ServedModel(bundle, ref, schema, variant, datetime.now(UTC))

    def _report(self, rejections: list[Rejection]) -> None:
        known = {(one.version, one.reason): one for one in self.rejections}
        for rejection in rejections:
            if (rejection.version, rejection.reason) not in known:
                self._metrics.models.rejected.inc()
                self._log.error("bundle_rejected", version=rejection.version, reason=rejection.reason)
        # A repeated rejection keeps its time.
        self.rejections = tuple(known.get((one.version, one.reason), one) for one in rejections)
        self.last_rejection = self.rejections[0] if self.rejections else None

    def _read_signature(self) -> Signature:
        folders = [serving_folder.bundle_folder(self._folder, ref) for ref in self._refs]
        return tuple(file_signature(path) for path in (self._folder / serving_folder.ROUTING, *_list_files(folders)))


def _list_bundles(deployment: Deployment | None) -> list[Bundle]:
    """Return the bundles of a deployment, including its experiments."""
    if deployment is None:
        return []
    return [deployment.model.bundle, *(one.model.bundle for one in deployment.experiments)]


def _read_trained_at(bundle: Path) -> datetime | None:
    # The file is not verified, so it is used only for a metric.
    try:
        return datetime.fromisoformat(read_json(bundle / LINEAGE)["trained_at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _list_files(folders: list[Path]) -> Iterator[Path]:
    for folder in folders:
        yield folder
        try:
            yield from sorted(Path(entry) for entry in os.scandir(folder))
        except OSError:
            continue


def _give_back_memory() -> None:
    """Return freed memory to the system; glibc's allocator would keep some megabytes after loading a model."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
