"""What training hands to serving: a folder of plain files, hashed, with the one way to a prediction.

    model.onnx      the graph: `num` float32 [n, k] and `cat` string [n, m] in, probabilities [n, classes] out
    contract.yaml   what a row is
    profile.json    what the reference rows looked like
    card.md         the model card
    background.json some training rows, as the API takes them, that explanations compare with
    manifest.json   what the model is and is good for, and the sha256 of every file above

Nothing here is unpickled and nothing but ONNX Runtime is needed to predict.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field

from flywheel_ml.core.calibration import Calibration
from flywheel_ml.core.contract import Columns, Contract, Label, Task, columns_from_rows
from flywheel_ml.core.features import Feature, Featurizer, Inputs, hash_definition
from flywheel_ml.core.profile import Profile
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ConfigError, IntegrityError
from flywheel_ml.utils.files import canonical_json, read_json, sha256_file

MODEL, CONTRACT, PROFILE, CARD, MANIFEST = "model.onnx", "contract.yaml", "profile.json", "card.md", "manifest.json"
BACKGROUND = "background.json"
HASHED = (MODEL, CONTRACT, PROFILE, CARD, BACKGROUND)
FORMAT = 2
"""2 added the background; a bundle of format 1 predicts as before, and explains nothing."""
LINEAGE = "lineage.json"
"""Where a bundle came from; added by the registry beside the hashed files, because it differs between equal bundles."""
CHEBYSHEV = 10**0.5
"""Within so many standard deviations lie nine of ten values of any distribution (Chebyshev's inequality)."""


class Slice(config_model.StrictModel):
    """A metric table of the rows that share one value of one column."""

    column: str
    value: str
    rows: int
    enough: bool
    metrics: dict[str, float]


class TuningResult(config_model.StrictModel):
    """What a search for parameters came to: the chosen ones (none: those of params.yaml), and validation losses."""

    trials: int
    parameters: dict[str, float | int | str]
    loss: float
    loss_untuned: float


class PairedTest(config_model.StrictModel):
    """A paired comparison of losses on out-of-fold rows, see model/training/comparison.py."""

    loss: float
    gain: float
    standard_error: float | None
    p_value: float = Field(ge=0, le=1)


class BaselineComparison(config_model.StrictModel):
    """How the model compares with the class prior and the linear baseline on out-of-fold rows."""

    rows: int
    clusters: int
    loss: float
    prior: PairedTest
    linear: PairedTest


class Manifest(config_model.StrictModel):
    """What a bundle says of itself; content only, so equal inputs give equal bytes."""

    format: Literal[1, 2] = 2
    name: str
    task: Task
    target: str
    classes: tuple[Label, ...]
    threshold: float | None = Field(default=None, ge=0, le=1)
    half_width: float | None = Field(default=None, ge=0)
    calibration: Calibration | None = None
    comparison: BaselineComparison | None = None
    estimator: str
    tuned: TuningResult | None = None
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    derived: dict[str, str]
    min_batch: int = Field(ge=1)
    prior: tuple[float, ...]
    rows: dict[str, int]
    metrics: dict[str, dict[str, float]]
    slices: tuple[Slice, ...]
    parity: float = Field(ge=0)
    data: dict[str, str]
    params_sha256: str
    contract_sha256: str
    libraries: dict[str, str]
    files: dict[str, str]


class Predictions(NamedTuple):
    """Answers for n_rows.

    Attributes:
        values: [n_rows] in the classes' own type, or float.
        output: float [n_rows, n_classes] of probabilities, or [n_rows, 3]: value, low and high end of its interval.
        scores: float [n_rows], what is profiled and logged: the probability of the positive class of two, of the
            likeliest of more, or the value.
    """

    values: np.ndarray
    output: np.ndarray
    scores: np.ndarray


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> Manifest:
    """Hash the files in `folder` and write their manifest; `facts` are the manifest's other fields."""
    files = {name: sha256_file(folder / name) for name in _expected_files(facts.get("format", FORMAT))}
    manifest = Manifest.model_validate({**facts, "files": files}, strict=False)
    text = canonical_json(manifest.model_dump(mode="json"), indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return manifest


class Bundle:
    """An opened, verified bundle. Safe to share between threads."""

    def __init__(
        self,
        path: Path,
        digest: str,
        manifest: Manifest,
        contract: Contract,
        session: Any,
        background: Columns | None = None,
        features: Sequence[Feature] = (),
    ) -> None:
        self.path = path
        self.digest = digest
        self.manifest = manifest
        self.contract = contract
        self.background = background
        """Training rows that explanations compare with; None where the bundle carries none."""
        self._session = session
        calibration = manifest.calibration
        self._calibration = calibration if calibration is not None and calibration.method != "none" else None
        self.features = features
        self._featurizer = Featurizer(contract, _find_features(manifest, path, features))
        self._feeds = [feed.name for feed in session.get_inputs()]
        self._classes = np.array(manifest.classes, dtype=object if contract.target.type == "string" else None)
        layout = (self._featurizer.numeric, tuple(column.name for column in self._featurizer.categorical))
        if (contract.target.name, *layout) != (manifest.target, manifest.numeric, manifest.categorical):
            raise IntegrityError(
                f"bundle {path}: its {CONTRACT} gives another target or other model inputs than its {MANIFEST} lists"
            )
        widths = {"num": len(manifest.numeric), "cat": len(manifest.categorical)}
        if {feed.name: feed.shape[1] for feed in session.get_inputs()} != {k: n for k, n in widths.items() if n}:
            raise IntegrityError(f"bundle {path}: its {MODEL} takes other inputs than its {MANIFEST} lists")

    @classmethod
    def open(cls, path: Path, digest: str | None = None, features: Sequence[Feature] = ()) -> Self:
        """Verify every hash, then load.

        Args:
            path: the bundle's folder.
            digest: sha256 of the manifest that is expected, where the caller knows it.
            features: those of the project; the bundle takes the ones that it was trained with.

        Raises:
            IntegrityError: a file is missing or changed, or its parts do not belong together.
            ConfigError: it was trained with another definition of a derived feature, or written by a newer version
                of this package.
        """
        manifest = verify(path, digest)
        contract = Contract.load(path / CONTRACT, accept_renamed=True)
        if contract.fingerprint() != manifest.contract_sha256:
            raise IntegrityError(f"bundle {path}: {CONTRACT} is not the contract that the model was trained with")
        background = _load_background(path, manifest, contract)
        return cls(path, sha256_file(path / MANIFEST), manifest, contract, _open_session(path), background, features)

    @classmethod
    def open_prior(cls, path: Path, digest: str, features: Sequence[Feature] = ()) -> Self:
        """As `open`, but without the model, which may be missing or changed: every row is answered as `prior` says."""
        manifest = verify(path, digest, [name for name in HASHED if name != MODEL])
        return cls(
            path,
            digest,
            manifest,
            Contract.load(path / CONTRACT, accept_renamed=True),
            _PriorSession(manifest),
            features=features,
        ).prior

    @property
    def prior(self) -> Self:
        """The bundle that gives every row the same answer: the classes' shares, or the mean, of the training rows.

        A mean's interval is wide enough for nine of ten test rows, whatever their distribution.
        """
        wide = CHEBYSHEV * (self.manifest.metrics.get("prior") or self.manifest.metrics.get("trivial", {})).get(
            "rmse", 0.0
        )
        half = None if self.manifest.half_width is None else max(wide, self.manifest.half_width)
        manifest = self.manifest.model_copy(update={"half_width": half, "calibration": None})
        return type(self)(
            self.path, self.digest, manifest, self.contract, _PriorSession(manifest), features=self.features
        )

    @property
    def profile(self) -> Profile:
        """The reference profile, read from disk."""
        return Profile.load(self.path / PROFILE)

    def predict(self, columns: Columns) -> Predictions:
        """Predict n_rows from the contract's input columns; a row's answer does not depend on its neighbours.

        Raises:
            IntegrityError: the model answered with something that is no number.
        """
        return self.to_predictions(self.run(self.encode(columns)))

    def encode(self, columns: Columns) -> Inputs:
        """What the model sees of n_rows of the contract's input columns."""
        return self._featurizer.encode(columns)

    def encode_rows(self, rows: Sequence[Mapping[str, Any]]) -> Inputs:
        """The same of n_rows of Python values."""
        return self._featurizer.encode_rows(rows)

    @property
    def unused(self) -> frozenset[str]:
        """Names of input columns that no feature is made from, see `Featurizer.unused`."""
        return self._featurizer.unused

    def drift_features(self, columns: Columns) -> dict[str, np.ndarray]:
        """What the profile counts of n_rows beyond their own columns, see `Featurizer.drift_features`."""
        return self._featurizer.drift_features(columns)

    def run(self, inputs: Inputs) -> np.ndarray:
        """Answers to encoded inputs: calibrated probabilities [n_rows, n_classes], or values [n_rows, 1].

        Probabilities are float32; values are what the graph gives, float64 or in bundles of before float32.
        """
        n_rows = len(inputs.num)
        if n_rows == 0:
            return np.empty((0, len(self._classes) or 1), dtype=np.float32)
        if n_rows < self.manifest.min_batch:
            repeat = np.resize(np.arange(n_rows), self.manifest.min_batch)
            inputs = Inputs(inputs.num[repeat], inputs.cat[repeat])
        outputs: np.ndarray = self._session.run(None, {name: getattr(inputs, name) for name in self._feeds})[0]
        if self._calibration is not None:
            outputs = self._calibration.apply(outputs).astype(np.float32)
        if self.manifest.classes:
            # The graph of a forest adds its trees' shares in float32: all of them may come to a little more than 1.
            outputs = np.minimum(outputs, 1)
        return outputs[:n_rows]

    def to_predictions(self, outputs: np.ndarray) -> Predictions:
        """The outputs that the session's own stand for; raises as `predict` does."""
        if not np.isfinite(outputs).all():
            raise IntegrityError(f"bundle {self.path}: the model returned a value that is no number")
        if self.manifest.task == "regression":
            assert self.manifest.half_width is not None
            values, half = outputs[:, 0], outputs.dtype.type(self.manifest.half_width)
            return Predictions(values, np.stack((values, values - half, values + half), axis=1), values)
        if self.manifest.task == "binary":
            assert self.manifest.threshold is not None
            positive = outputs[:, -1] >= self.manifest.threshold
            return Predictions(self._classes[positive.astype(np.intp)], outputs, outputs[:, -1])
        return Predictions(self._classes[outputs.argmax(axis=1)], outputs, outputs.max(axis=1))


class _PriorSession:
    """Stands where a session does, and answers every row alike."""

    def __init__(self, manifest: Manifest) -> None:
        self._widths = {"num": len(manifest.numeric), "cat": len(manifest.categorical)}
        self._answer = np.array([manifest.prior], dtype=np.float32)

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name=name, shape=(None, wide)) for name, wide in self._widths.items() if wide]

    def run(self, _: None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [self._answer.repeat(len(next(iter(feeds.values()))), axis=0)]


def verify(path: Path, digest: str | None = None, parts: Collection[str] = HASHED) -> Manifest:
    """Check that a bundle's folder still holds what was sealed; arguments and errors as `Bundle.open`.

    Args:
        parts: the files that count.
    """
    if not (path / MANIFEST).is_file():
        raise IntegrityError(f"bundle {path}: {MANIFEST} is missing")
    if digest is not None and sha256_file(path / MANIFEST) != digest:
        raise IntegrityError(f"bundle {path}: {MANIFEST} was changed after it was registered")
    manifest = _load_manifest(path)
    if manifest.files.keys() != set(_expected_files(manifest.format)):
        expected = ", ".join(_expected_files(manifest.format))
        raise IntegrityError(f"bundle {path}: {MANIFEST} lists other files than {expected}")
    for name, expected in manifest.files.items():
        if name not in parts:
            continue
        if not (path / name).is_file():
            raise IntegrityError(f"bundle {path}: {name} is missing")
        if sha256_file(path / name) != expected:
            raise IntegrityError(f"bundle {path}: {name} was changed after it was sealed")
    return manifest


def _expected_files(number: int) -> tuple[str, ...]:
    """What a bundle of a format holds beside its manifest."""
    return HASHED if number > 1 else tuple(name for name in HASHED if name != BACKGROUND)


def _load_background(path: Path, manifest: Manifest, contract: Contract) -> Columns | None:
    if BACKGROUND not in manifest.files:
        return None
    try:
        rows = read_json(path / BACKGROUND)
        return columns_from_rows(contract.inputs, rows) if rows else None
    except (AttributeError, TypeError, ValueError):
        raise IntegrityError(f"bundle {path}: {BACKGROUND} holds no rows of its {CONTRACT}") from None


def _load_manifest(path: Path) -> Manifest:
    try:
        content = read_json(path / MANIFEST)
    except ValueError:
        raise IntegrityError(f"bundle {path}: {MANIFEST} is not JSON") from None
    found = content.get("format") if isinstance(content, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise ConfigError(f"bundle {path} has format {found}, this package knows {FORMAT}; update the package")
    try:
        return config_model.parse(content, Manifest, name=MANIFEST)
    except ConfigError as error:
        raise IntegrityError(f"bundle {path}: {error}") from None


def _open_session(path: Path) -> Any:
    # ONNX Runtime's wheels report to their maker unless told otherwise before the first import in a process.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # More threads change low bits of a sum; serving scales by processes.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # Its errors are raised; it would print them as well, in a form of its own.
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(path / MODEL, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise IntegrityError(f"bundle {path}: {MODEL} does not load: {' '.join(str(error).split())[:200]}") from None


def _find_features(manifest: Manifest, path: Path, features: Sequence[Feature]) -> list[Feature]:
    """The derived features the model was trained with, if they still mean what they meant then."""
    known = {function.__name__: function for function in features}
    for name, expected in manifest.derived.items():
        if name not in known:
            raise ConfigError(f"bundle {path}: needs the feature '{name}', which features.py no longer has; restore it")
        if hash_definition(known[name]) != expected:
            raise ConfigError(
                f"bundle {path}: was trained with another definition of '{name}'; "
                "restore it in features.py and give the new definition a new name"
            )
    # The order of the model's inputs: that of a JSON object's keys says nothing.
    return [known[name] for name in manifest.numeric if name in manifest.derived]
