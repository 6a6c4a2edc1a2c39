"""Paths of the files that stages and commands read and write, relative to the project's folder."""

from pathlib import Path

CONTRACT, PARAMS, DECISIONS = Path("contract.yaml"), Path("params.yaml"), Path("decisions.yaml")
TABLE = Path("data/table.parquet")
SPLITS = {name: Path(f"data/split/{name}.parquet") for name in ("train", "validation", "test")}
MODEL, BASELINE, SKLEARN_DEFAULT = (
    Path(f"model/{name}.joblib") for name in ("pipeline", "baseline", "sklearn_default")
)
OUT_OF_FOLD = Path("model/out_of_fold.parquet")
SELECTION_SECONDS = Path("var/selection.json")
BUNDLE = Path("bundle")
PROFILE_BINS = Path("profile_bins.json")
REPORTS = Path("reports")
PLOTS = REPORTS / "plots"
ABLATION = REPORTS / "ablation.json"
PRIVACY = REPORTS / "privacy.json"
MEASURED = Path("var/measured.json")
COMPUTE_BASELINE = Path("compute_baseline.json")
TUNING = Path("var/tuning")
OUTBOX = Path("var/alerts")
TRACE = Path("var/last-error.txt")
