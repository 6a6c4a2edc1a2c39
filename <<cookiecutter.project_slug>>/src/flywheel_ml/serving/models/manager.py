"""Follows the serving folder, and swaps models without dropping a request."""

import ctypes
import gc
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
from flywheel_ml.serving.models.served_model import Deployment, Experiment, ServedModel, Variant
from flywheel_ml.serving.observability.logs import explained
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.serving.schema.request_schema import Schema
from flywheel_ml.utils.errors import ConfigError, ProjectError
from flywheel_ml.utils.file_watcher import POLL_SECONDS, FileSignature, file_signature, poll
from flywheel_ml.utils.files import read_json

MAX_RELEASE_SECONDS = 60.0
"""Longest wait between two looks whether a model that left service is gone from memory; the first is `POLL_SECONDS`."""

Signature = tuple[FileSignature, ...]


@dataclass(frozen=True)
class Refusal:
    """A bundle (or, without a version, a routing) that was turned down."""

    version: str | None
    reason: str
    at: datetime


class ModelManager:
    """Keeps `deployment` equal to what the serving folder asks for, as far as that can be trusted.

    A refused champion leaves the model in memory in service; without one, the previous model answers as fallback;
    without that, the prior of either; without that, `deployment` is None until the folder becomes good. A challenger or
    shadow that is refused leaves the champion alone.
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
        self.refused: Refusal | None = None
        self._folder = folder
        self._max_instances = max_instances
        self._features = features
        self._metrics = metrics
        self._log = log
        self._refs: tuple[BundleRef, ...] = ()
        self._seen: Signature | None = None
        self._retired: list[weakref.ref[Bundle]] = []
        self._release_wait, self._release_at = POLL_SECONDS, 0.0

    async def follow(self) -> None:
        """Look at the folder, for ever."""
        await poll(self.refresh, lambda error: self._log.error("serving_folder", **explained(error)))

    def refresh(self) -> None:
        """Load what changed; blocking. What cannot be trusted is refused, not raised."""
        # Taken before reading: a change while loading shows at the next look.
        signature = self._signature()
        self._release()
        if signature == self._seen:
            return
        try:
            asked = serving_folder.read_routing(self._folder)
        except ProjectError as error:
            self._report([Refusal(None, str(error), datetime.now(UTC))])
        else:
            beside = (one.ref for one in (asked.challenger, asked.shadow) if one is not None)
            self._refs = tuple(ref for ref in (asked.champion, asked.previous, *beside) if ref is not None)
            self._deploy(asked)
        self._seen = signature if signature == self._signature() else None

    @property
    def _model(self) -> ServedModel | None:
        """What is in memory and no mere prior."""
        return None if self.deployment is None or self.deployment.model.is_prior else self.deployment.model

    def _deploy(self, asked: Routing) -> None:
        refusals: list[Refusal] = []
        before, found = self.deployment, self._deployment(asked, refusals)
        if found is not None and (before is None or before.model.bundle is not found.model.bundle):
            model = found.model
            self._metrics.models.loaded.inc()
            self._log.info("bundle_loaded", version=model.ref.version, digest=model.ref.digest, variant=model.variant)
        self._report(refusals)  # First, or somebody could see that a model was refused, and no reason.
        self.deployment = found
        kept = found.experiments if found else []
        for experiment in before.experiments if before else []:
            if experiment not in kept:
                experiment.close()
        self._retire(before, found)
        self._metrics.models.experiments(
            {(one.model.ref.version, one.model.variant): one.paused is not None for one in kept}
        )
        if found is None:
            self._metrics.models.none_answering()
        else:
            self._measure(found.model)

    def _measure(self, model: ServedModel) -> None:
        made_at = _trained_at(serving_folder.bundle_folder(self._folder, model.ref)) or model.loaded_at
        name = model.bundle.manifest.name
        self._metrics.models.answering(name, model.ref.version, model.ref.digest, model.variant, made_at.timestamp())

    def _deployment(self, asked: Routing, refusals: list[Refusal]) -> Deployment | None:
        found = self._try(asked.champion, "champion", refusals)
        if found is None and self._model is not None and asked.champion is not None:
            same = self._model.ref == asked.champion
            found = replace(self._model, variant="champion" if same else "fallback")
        found = found or self._try(asked.previous, "fallback", refusals)
        found = found or self._prior(asked.champion) or self._prior(asked.previous)
        if found is None:
            return None
        if found.variant != "champion":  # Nothing is tried next to a stand-in.
            return Deployment(found, asked)
        challenger = self._experiment(found, asked.challenger, "challenger", refusals)
        return Deployment(found, asked, challenger, self._experiment(found, asked.shadow, "shadow", refusals))

    def _retire(self, before: Deployment | None, found: Deployment | None) -> None:
        """Remember what left service; requests that began with it go on."""
        bundles = {id(one): one for one in _bundles(before)}
        gone = [one for key, one in bundles.items() if key not in set(map(id, _bundles(found)))]
        if gone:
            self._retired += map(weakref.ref, gone)
            self._release_wait, self._release_at = POLL_SECONDS, 0.0

    def _release(self) -> None:
        """Give the memory of models that left service back to the system, once nothing uses them any more.

        A server collects garbage so seldom that a request which failed could keep its model for days.
        """
        if not self._retired or time.monotonic() < self._release_at:
            return
        gc.collect()
        self._retired = [one for one in self._retired if one() is not None]
        _give_back_memory()
        if self._retired:
            self._release_wait = min(2 * self._release_wait, MAX_RELEASE_SECONDS)
            self._release_at = time.monotonic() + self._release_wait

    def _experiment(
        self, champion: ServedModel, asked: Challenger | Shadow | None, variant: Variant, refusals: list[Refusal]
    ) -> Experiment | None:
        if asked is None:
            return None
        path = serving_folder.bundle_folder(self._folder, asked.ref)
        running = [one for one in (self.deployment.experiments if self.deployment else []) if one.is_same(asked)]
        try:
            if running:
                verify(path, asked.ref.digest)
                running[0].spec = asked
                return running[0]
            bundle = Bundle.open(path, asked.ref.digest, self._features)
            if unfit := serving_folder.find_incompatibility(champion.bundle.contract, bundle.contract):
                raise ConfigError(f"version {asked.ref.version} cannot stand beside the champion: {unfit}")
            # Rows are checked by the champion's contract, so its typical row is what has to be answered.
            bundle.predict(columns_from_rows(bundle.contract.inputs, [champion.schema.example]))
        except Exception as error:
            refusals.append(self._refusal(asked.ref, path, error))
            return None
        self._log.info("trial_began", version=asked.ref.version, digest=asked.ref.digest, variant=variant)
        model = ServedModel(bundle, asked.ref, champion.schema, variant, datetime.now(UTC))
        return Experiment(model, asked, self._on_pause)

    def _on_pause(self, experiment: Experiment, reason: str) -> None:
        model = experiment.model
        self._metrics.models.paused(model.ref.version, model.variant)
        self._log.error("trial_paused", version=model.ref.version, variant=model.variant, reason=reason)

    def _prior(self, ref: BundleRef | None) -> ServedModel | None:
        if ref is None:
            return None
        now = self.deployment.model if self.deployment else None
        if now is not None and now.is_prior and now.ref == ref:
            return now
        path = serving_folder.bundle_folder(self._folder, ref)
        try:
            bundle = Bundle.open_prior(path, ref.digest, self._features)
            schema = Schema(bundle.contract, bundle.profile, self._max_instances, bundle.unused)
        except Exception:  # Why the bundle is no good was said when it was tried as a whole.
            return None
        return ServedModel(bundle, ref, schema, "fallback", datetime.now(UTC), is_prior=True)

    def _try(self, ref: BundleRef | None, variant: Variant, refusals: list[Refusal]) -> ServedModel | None:
        if ref is None:
            return None
        path = serving_folder.bundle_folder(self._folder, ref)
        try:
            if self._model is not None and self._model.ref == ref:
                verify(path, ref.digest)
                return self._model if self._model.variant == variant else replace(self._model, variant=variant)
            return self._load(path, ref, variant)
        except Exception as error:
            refusals.append(self._refusal(ref, path, error))
            return None

    @staticmethod
    def _refusal(ref: BundleRef, path: Path, error: Exception) -> Refusal:
        # A caller learns the version, not where this machine keeps it.
        told = str(error).replace(str(path), ref.version) if isinstance(error, ProjectError) else type(error).__name__
        return Refusal(ref.version, told, datetime.now(UTC))

    def _load(self, path: Path, ref: BundleRef, variant: Variant) -> ServedModel:
        bundle = Bundle.open(path, ref.digest, self._features)
        schema = Schema(bundle.contract, bundle.profile, self._max_instances, bundle.unused)
        # A model that cannot answer a typical row is refused here rather than by the first caller.
        bundle.predict(columns_from_rows(bundle.contract.inputs, [schema.example]))
        _give_back_memory()
        return ServedModel(bundle, ref, schema, variant, datetime.now(UTC))

    def _report(self, refusals: list[Refusal]) -> None:
        known = (self.refused.version, self.refused.reason) if self.refused else None
        for refusal in refusals:
            if (refusal.version, refusal.reason) != known:
                self._metrics.models.refused.inc()
                self._log.error("bundle_refused", version=refusal.version, reason=refusal.reason)
        if not refusals:
            self.refused = None
        elif (refusals[0].version, refusals[0].reason) != known:
            self.refused = refusals[0]

    def _signature(self) -> Signature:
        folders = [serving_folder.bundle_folder(self._folder, ref) for ref in self._refs]
        return tuple(file_signature(path) for path in (self._folder / serving_folder.ROUTING, *_files(folders)))


def _bundles(deployment: Deployment | None) -> list[Bundle]:
    """What a deployment holds, its experiments included."""
    if deployment is None:
        return []
    return [deployment.model.bundle, *(one.model.bundle for one in deployment.experiments)]


def _trained_at(bundle: Path) -> datetime | None:
    # Not among the files that are verified, so it tells a metric and decides nothing.
    try:
        return datetime.fromisoformat(read_json(bundle / LINEAGE)["trained_at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _files(folders: list[Path]) -> Iterator[Path]:
    for folder in folders:
        yield folder
        try:
            yield from sorted(Path(entry) for entry in os.scandir(folder))
        except OSError:
            continue


def _give_back_memory() -> None:
    """What reading a model took and freed; the allocator of Linux would keep some megabytes of it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
