"""The model that answers now: follows the serving folder, and swaps it without dropping a request."""

import ctypes
import gc
import os
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Literal

import structlog
from pydantic_core import to_json

from flywheel_ml.core import routing
from flywheel_ml.core.bundle import LINEAGE, Bundle, verify
from flywheel_ml.core.contract import Label, from_rows
from flywheel_ml.core.features import Feature
from flywheel_ml.core.routing import Challenger, Ref, Routing, Shadow
from flywheel_ml.serving.experiments.trial import Trial
from flywheel_ml.serving.observability.logs import explained
from flywheel_ml.serving.observability.series import Metrics
from flywheel_ml.serving.schema.request_schema import Schema
from flywheel_ml.utils.errors import ConfigError, ProjectError
from flywheel_ml.utils.file_watcher import POLL_SECONDS, Stamp, follow, stamp
from flywheel_ml.utils.files import read_json

MAX_RELEASE_SECONDS = 60.0
"""Longest wait between two looks whether a model that left service is gone from memory; the first is `POLL_SECONDS`."""

Variant = Literal["champion", "challenger", "shadow", "fallback"]
Signature = tuple[Stamp, ...]


@dataclass(frozen=True)
class Live:
    """A verified bundle in service; requests hold the one they began with."""

    bundle: Bundle
    ref: Ref
    schema: Schema
    routing: Routing
    variant: Variant
    loaded_at: datetime
    challenger: Trial | None = None
    shadow: Trial | None = None
    is_prior: bool = False
    """Whether the bundle's prior answers, its model being of no use."""

    @property
    def degraded(self) -> bool:
        """Whether this stands in for the model that routing asks for."""
        return self.variant == "fallback"

    @cached_property
    def prior(self) -> "Live":
        """What answers the rows that the model cannot: the bundle's prior."""
        return replace(self, bundle=self.bundle.prior, variant="fallback", challenger=None, shadow=None, is_prior=True)

    @cached_property
    def class_names(self) -> list[str]:
        """The classes as keys of a JSON object, in the order of the probabilities."""
        return [name_of(label) for label in self.bundle.manifest.classes]

    @cached_property
    def names(self) -> dict[Label, str]:
        """Each class in its own type → the same, as metrics name it."""
        return dict(zip(self.bundle.manifest.classes, self.class_names, strict=True))

    @cached_property
    def key(self) -> str | None:
        """Name of the column that names a row, if there is one."""
        return self.bundle.contract.id.name if self.bundle.contract.id else None

    @cached_property
    def time(self) -> str | None:
        """Name of the column that says when a row happened, if there is one."""
        return self.bundle.contract.time.name if self.bundle.contract.time else None

    @cached_property
    def class_texts(self) -> dict[Label, str]:
        """Each class in its own type → its JSON text."""
        return {label: to_json(label).decode() for label in self.bundle.manifest.classes}

    @cached_property
    def probabilities_form(self) -> str:
        """The member `probabilities` of an answer, to be filled with one number's text per class."""
        names = (to_json(name).decode().replace("%", "%%") for name in self.class_names)
        return f'"probabilities":{{{",".join(f"{name}:%s" for name in names)}}}'

    @cached_property
    def closing(self) -> str:
        """The end of every answer's JSON text: which model gave it."""
        facts = {"model_version": self.ref.version, "variant": self.variant, "degraded": self.degraded}
        return to_json(facts).decode()[1:]

    @cached_property
    def closing_degraded(self) -> str:
        """Like `closing`, where another stood in for a row."""
        facts = {"model_version": self.ref.version, "variant": self.variant, "degraded": True}
        return to_json(facts).decode()[1:]


@dataclass(frozen=True)
class Refusal:
    """A bundle (or, without a version, a routing) that was turned down."""

    version: str | None
    reason: str
    at: datetime


def name_of(label: Label) -> str:
    """A class as JSON would write it, for keys and metrics."""
    return str(label).lower() if isinstance(label, bool) else str(label)


class Models:
    """Keeps `live` equal to what the serving folder asks for, as far as that can be trusted.

    A refused champion leaves the model in memory in service; without one, the previous model answers as fallback;
    without that, the prior of either; without that, `live` is None until the folder becomes good. A challenger or
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
        self.live: Live | None = None
        self.refused: Refusal | None = None
        self._folder = folder
        self._max_instances = max_instances
        self._features = features
        self._metrics = metrics
        self._log = log
        self._refs: tuple[Ref, ...] = ()
        self._seen: Signature | None = None
        self._retired: list[weakref.ref[Bundle]] = []
        self._release_wait, self._release_at = POLL_SECONDS, 0.0

    async def follow(self) -> None:
        """Look at the folder, for ever."""
        await follow(self.refresh, lambda error: self._log.error("serving_folder", **explained(error)))

    def refresh(self) -> None:
        """Load what changed; blocking. What cannot be trusted is refused, not raised."""
        # Taken before reading: a change while loading shows at the next look.
        signature = self._signature()
        self._release()
        if signature == self._seen:
            return
        try:
            asked = routing.read(self._folder)
        except ProjectError as error:
            self._report([Refusal(None, str(error), datetime.now(UTC))])
        else:
            beside = (one.ref for one in (asked.challenger, asked.shadow) if one is not None)
            self._refs = tuple(ref for ref in (asked.champion, asked.previous, *beside) if ref is not None)
            self._serve(asked)
        self._seen = signature if signature == self._signature() else None

    @property
    def _model(self) -> Live | None:
        """What is in memory and no mere prior."""
        return None if self.live is None or self.live.is_prior else self.live

    def _serve(self, asked: Routing) -> None:
        refusals: list[Refusal] = []
        found = self._try(asked.champion, asked, "champion", refusals)
        if found is None and self._model is not None and asked.champion is not None:
            same = self._model.ref == asked.champion
            found = replace(self._model, routing=asked, variant="champion" if same else "fallback")
        found = found or self._try(asked.previous, asked, "fallback", refusals)
        found = found or self._prior(asked.champion, asked) or self._prior(asked.previous, asked)
        before, found = self.live, self._with_trials(found, asked, refusals)
        if found is not None and (self.live is None or self.live.bundle is not found.bundle):
            self._metrics.reloads.inc()
            self._log.info("bundle_loaded", version=found.ref.version, digest=found.ref.digest, variant=found.variant)
        self._report(refusals)  # First, or somebody could see that a model was refused, and no reason.
        self.live = found
        kept = [found.challenger, found.shadow] if found else []
        for trial in [before.challenger, before.shadow] if before else []:
            if trial is not None and trial not in kept:
                trial.close()
        self._retire(before, found)
        self._metrics.trials([trial for trial in kept if trial is not None])
        if found is None:
            self._metrics.no_model()
        else:
            made_at = _trained_at(routing.bundle_folder(self._folder, found.ref)) or found.loaded_at
            self._metrics.model(
                found.bundle.manifest.name, found.ref.version, found.ref.digest, found.variant, made_at.timestamp()
            )

    def _retire(self, before: Live | None, found: Live | None) -> None:
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

    def _with_trials(self, found: Live | None, asked: Routing, refusals: list[Refusal]) -> Live | None:
        if found is None or found.variant != "champion":
            # Nothing is tried out beside a stand-in.
            return found and replace(found, challenger=None, shadow=None)
        return replace(
            found,
            challenger=self._trial(found, asked.challenger, "challenger", refusals),
            shadow=self._trial(found, asked.shadow, "shadow", refusals),
        )

    def _trial(
        self, champion: Live, asked: Challenger | Shadow | None, variant: Variant, refusals: list[Refusal]
    ) -> Trial | None:
        if asked is None:
            return None
        path = routing.bundle_folder(self._folder, asked.ref)
        trials = [trial for trial in (champion.challenger, champion.shadow) if trial and trial.is_same(asked)]
        try:
            if trials:
                verify(path, asked.ref.digest)
                trials[0].asked = asked
                return trials[0]
            bundle = Bundle.open(path, asked.ref.digest, self._features)
            if unfit := routing.unfit(champion.bundle.contract, bundle.contract):
                raise ConfigError(f"version {asked.ref.version} cannot stand beside the champion: {unfit}")
            # Rows are checked by the champion's contract, so its typical row is what has to be answered.
            bundle.predict(from_rows(bundle.contract.inputs, [champion.schema.example]))
        except Exception as error:
            refusals.append(self._refusal(asked.ref, path, error))
            return None
        self._log.info("trial_began", version=asked.ref.version, digest=asked.ref.digest, variant=variant)
        live = Live(bundle, asked.ref, champion.schema, champion.routing, variant, datetime.now(UTC))
        return Trial(live, asked, self._on_pause)

    def _on_pause(self, trial: Trial, reason: str) -> None:
        self._metrics.paused(trial)
        self._log.error("trial_paused", version=trial.live.ref.version, variant=trial.live.variant, reason=reason)

    def _prior(self, ref: Ref | None, asked: Routing) -> Live | None:
        if ref is None:
            return None
        if self.live is not None and self.live.is_prior and self.live.ref == ref:
            return replace(self.live, routing=asked)
        path = routing.bundle_folder(self._folder, ref)
        try:
            bundle = Bundle.open_prior(path, ref.digest, self._features)
            schema = Schema(bundle.contract, bundle.profile, self._max_instances, bundle.unused)
        except Exception:  # Why the bundle is no good was said when it was tried as a whole.
            return None
        return Live(bundle, ref, schema, asked, "fallback", datetime.now(UTC), is_prior=True)

    def _try(self, ref: Ref | None, asked: Routing, variant: Variant, refusals: list[Refusal]) -> Live | None:
        if ref is None:
            return None
        path = routing.bundle_folder(self._folder, ref)
        try:
            if self._model is not None and self._model.ref == ref:
                verify(path, ref.digest)
                return replace(self._model, routing=asked, variant=variant)
            return self._load(path, ref, asked, variant)
        except Exception as error:
            refusals.append(self._refusal(ref, path, error))
            return None

    @staticmethod
    def _refusal(ref: Ref, path: Path, error: Exception) -> Refusal:
        # A caller learns the version, not where this machine keeps it.
        told = str(error).replace(str(path), ref.version) if isinstance(error, ProjectError) else type(error).__name__
        return Refusal(ref.version, told, datetime.now(UTC))

    def _load(self, path: Path, ref: Ref, asked: Routing, variant: Variant) -> Live:
        bundle = Bundle.open(path, ref.digest, self._features)
        schema = Schema(bundle.contract, bundle.profile, self._max_instances, bundle.unused)
        # A model that cannot answer a typical row is refused here rather than by the first caller.
        bundle.predict(from_rows(bundle.contract.inputs, [schema.example]))
        _give_back_memory()
        return Live(bundle, ref, schema, asked, variant, datetime.now(UTC))

    def _report(self, refusals: list[Refusal]) -> None:
        known = (self.refused.version, self.refused.reason) if self.refused else None
        for refusal in refusals:
            if (refusal.version, refusal.reason) != known:
                self._metrics.refused.inc()
                self._log.error("bundle_refused", version=refusal.version, reason=refusal.reason)
        if not refusals:
            self.refused = None
        elif (refusals[0].version, refusals[0].reason) != known:
            self.refused = refusals[0]

    def _signature(self) -> Signature:
        folders = [routing.bundle_folder(self._folder, ref) for ref in self._refs]
        return tuple(stamp(path) for path in (self._folder / routing.ROUTING, *_files(folders)))


def _bundles(live: Live | None) -> list[Bundle]:
    """What a model in service holds, those on trial beside it included."""
    if live is None:
        return []
    return [live.bundle, *(trial.live.bundle for trial in (live.challenger, live.shadow) if trial is not None)]


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
