"""The bundle: a hashed folder of plain files that training writes and serving predicts from.

    model.onnx      the graph: `num` float32 [n, k] and `cat` string [n, m] in, probabilities [n, classes] out
    contract.yaml   what a row is
    profile.json    what the reference rows looked like
    card.md         the model card
    background.json training rows in the API's format, which explanations compare with
    manifest.json   facts and metrics of the model, and the sha256 of every file above

Nothing is unpickled, and predicting needs only ONNX Runtime.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field

from flywheel_ml.core.calibration import Calibration
from flywheel_ml.core.contract import Columns, Contract, Label, Task, columns_from_rows
from flywheel_ml.core.features import Feature, FeatureFunction, Featurizer, Inputs, hash_definition
from flywheel_ml.core.profile import Profile
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ConfigError, IntegrityError
from flywheel_ml.utils.files import canonical_json, read_json, sha256_file

MODEL, CONTRACT, PROFILE, CARD, MANIFEST = "model.onnx", "contract.yaml", "profile.json", "card.md", "manifest.json"
BACKGROUND = "background.json"
HASHED = (MODEL, CONTRACT, PROFILE, CARD, BACKGROUND)
FORMAT = 2
"""Format 2 added the background. A bundle of format 1 still predicts but cannot explain."""
LINEAGE = "lineage.json"
"""Where a bundle came from. The registry adds it next to the hashed files, as it differs between equal bundles."""
CHEBYSHEV = 10**0.5
"""Number of standard deviations that cover nine of ten values of any distribution (Chebyshev's inequality)."""


class Slice(config_model.StrictModel):
    """A metric table of the rows that share one value of one column."""

    column: str
    value: str
    rows: int
    enough: bool
    metrics: dict[str, float]


class TuningResult(config_model.StrictModel):
    """Result of a parameter search: the chosen values (empty: those of params.yaml) and the validation losses."""

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
    """Contents of manifest.json; it holds no timestamps, so equal inputs give equal bytes."""

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
    """Predictions for n_rows.

    Attributes:
        values: [n_rows] in the type of the classes, or float.
        output: float [n_rows, n_classes] of probabilities, or [n_rows, 3]: value, low and high end of its interval.
        scores: float [n_rows], profiled and logged: the probability of the positive class (binary), of the most likely
            class (multiclass), or the value (regression).
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
    """A verified bundle, ready to predict. Safe to share between threads."""

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
        """Training rows that explanations compare with; None if the bundle has none."""
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
            digest: expected sha256 of the manifest, if the caller knows it.
            features: the project's features; the bundle uses those it was trained with.

        Raises:
            IntegrityError: a file is missing or changed, or the files do not match each other.
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
        """Open without the model, which may be missing or changed; every row gets the prediction of `prior`."""
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
        """The fallback bundle: it predicts the class shares, or the mean, of the training rows for every row.

        The interval around the mean covers nine of ten test rows, whatever their distribution.
        """
        wide = CHEBYSHEV * (self.manifest.metrics.get("prior") or self.manifest.metrics.get("trivial", {})).get(
            "rmse", 0.0
        )
        half = None if self.manifest.half_width is None else max(wide, self.manifest.half_width)
        manifest = self.manifest.model_copy(update={"half_width": half, "calibration": None})
        return type(self)(
            self.path, self.digest, manifest, self.contract, _PriorSession(manifest), features=self.features
        )

    @cached_property
    def profile(self) -> Profile:
        """The reference profile, read from disk at the first use and kept."""
        return self.read_profile()

    def read_profile(self) -> Profile:
        """Read the reference profile from disk. A server, which needs it once, does not keep it in memory."""
        return Profile.load(self.path / PROFILE)

    def predict(self, columns: Columns) -> Predictions:
        """Predict n_rows from the contract's input columns; each row is predicted independently.

        Raises:
            IntegrityError: the model returned NaN or infinity.
        """
        return self.to_predictions(self.run(self.encode(columns)))

    def encode(self, columns: Columns) -> Inputs:
        """Encode n_rows of the contract's input columns for the model."""
        return self._featurizer.encode(columns)

    def encode_rows(self, rows: Sequence[Mapping[str, Any]]) -> Inputs:
        """Encode n_rows of Python values for the model."""
        return self._featurizer.encode_rows(rows)

    @property
    def unused(self) -> frozenset[str]:
        """Names of input columns that no feature is made from, see `Featurizer.unused`."""
        return self._featurizer.unused

    @property
    def derived(self) -> dict[str, FeatureFunction]:
        """Functions of the derived features by name, see `Featurizer.derived`."""
        return self._featurizer.derived

    def drift_features(self, columns: Columns) -> dict[str, np.ndarray]:
        """Features that the profile counts besides the columns, see `Featurizer.drift_features`."""
        return self._featurizer.drift_features(columns)

    def run(self, inputs: Inputs) -> np.ndarray:
        """Run the model: returns calibrated probabilities [n_rows, n_classes], or values [n_rows, 1].

        Probabilities are float32. Values have the graph's type: float64, or float32 in older bundles.
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
            # The graph of a forest adds its trees' shares in float32: their sum may slightly exceed 1.
            outputs = np.minimum(outputs, 1)
        return outputs[:n_rows]

    def to_predictions(self, outputs: np.ndarray) -> Predictions:
        """Convert the model's outputs to predictions; raises as `predict` does."""
        if not np.isfinite(outputs).all():
            raise IntegrityError(f"bundle {self.path}: the model returned NaN or infinity")
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
    """Replaces an ONNX Runtime session and returns the class prior for every row."""

    def __init__(self, manifest: Manifest) -> None:
        self._widths = {"num": len(manifest.numeric), "cat": len(manifest.categorical)}
        self._answer = np.array([manifest.prior], dtype=np.float32)

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name=name, shape=(None, wide)) for name, wide in self._widths.items() if wide]

    def run(self, _: None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [self._answer.repeat(len(next(iter(feeds.values()))), axis=0)]


def verify(path: Path, digest: str | None = None, parts: Collection[str] = HASHED) -> Manifest:
    """Check that a bundle's files match its manifest; arguments and errors as in `Bundle.open`.

    Args:
        parts: names of the files to check.
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
            raise IntegrityError(f"bundle {path}: {name} was changed after its manifest was written")
    return manifest


def _expected_files(number: int) -> tuple[str, ...]:
    """Names of the files that a bundle of this format holds besides its manifest."""
    return HASHED if number > 1 else tuple(name for name in HASHED if name != BACKGROUND)


def _load_background(path: Path, manifest: Manifest, contract: Contract) -> Columns | None:
    if BACKGROUND not in manifest.files:
        return None
    try:
        rows = read_json(path / BACKGROUND)
        return columns_from_rows(contract.inputs, rows) if rows else None
    except (AttributeError, TypeError, ValueError):
        raise IntegrityError(f"bundle {path}: {BACKGROUND} does not contain rows of its {CONTRACT}") from None


def _load_manifest(path: Path) -> Manifest:
    try:
        content = read_json(path / MANIFEST)
    except ValueError:
        raise IntegrityError(f"bundle {path}: {MANIFEST} is not JSON") from None
    found = content.get("format") if isinstance(content, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise ConfigError(f"bundle {path} has format {found}, this package reads up to {FORMAT}; update the package")
    try:
        return config_model.parse(content, Manifest, name=MANIFEST)
    except ConfigError as error:
        raise IntegrityError(f"bundle {path}: {error}") from None


def _open_session(path: Path) -> Any:
    # ONNX Runtime's wheels send telemetry unless this is set before the first import in a process.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # More threads change low bits of a sum; serving scales by processes.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # Errors are raised; otherwise it would also print them in its own format.
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(path / MODEL, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise IntegrityError(f"bundle {path}: {MODEL} does not load: {' '.join(str(error).split())[:200]}") from None


def _find_features(manifest: Manifest, path: Path, features: Sequence[Feature]) -> list[Feature]:
    """Find the derived features the model was trained with; their definitions must be unchanged."""
    known = {function.__name__: function for function in features}
    for name, expected in manifest.derived.items():
        if name not in known:
            raise ConfigError(f"bundle {path}: needs the feature '{name}', which features.py no longer has; restore it")
        if hash_definition(known[name]) != expected:
            raise ConfigError(
                f"bundle {path}: was trained with another definition of '{name}'; "
                "restore it in features.py and give the new definition a new name"
            )
    # In the order of the model's inputs; the order of a JSON object's keys is not significant.
    return [known[name] for name in manifest.numeric if name in manifest.derived]
