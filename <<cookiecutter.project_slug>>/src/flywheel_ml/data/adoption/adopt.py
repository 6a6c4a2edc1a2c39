"""Replaces the project's table by the user's own table."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import polars as pl
import yaml

from flywheel_ml.core import paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.features import to_parameter_name
from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import Settings
from flywheel_ml.data import data_card, tables
from flywheel_ml.data.adoption import applying, inference, profiling, writing
from flywheel_ml.data.adoption.detection.detected import read_columns
from flywheel_ml.data.adoption.inference import Proposal
from flywheel_ml.data.adoption.overrides import Overrides
from flywheel_ml.data.adoption.profiling import TableProfile
from flywheel_ml.data.formats import reading
from flywheel_ml.data.formats.reading import OpenTable
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ConfigError, DataError

PYPROJECT, README, MAKEFILE = Path("pyproject.toml"), Path("README.md"), Path("Makefile")
SOURCE, FEATURES = "source.py", "features.py"
TESTS = Path("tests")
RAW = Path("data/raw")


class Examination(NamedTuple):
    """A profiled table and the proposal for it; nothing has been changed yet."""

    source: str
    rows: pl.LazyFrame
    profile: TableProfile
    proposal: Proposal


@contextmanager
def examine(source: str, query: str, target: str, overrides: Overrides, now: datetime) -> Iterator[Examination]:
    """Profile a table and propose a contract; call `adopt_table` inside this context.

    Raises:
        ConfigError: an override does not fit the table.
        DataError: the source cannot be read, it cannot be learned from, or the disk is full.
    """
    applying.start()
    try:
        with reading.open_table(source, query, applying.SCRATCH) as opened:
            target, overrides = reading.normalize_name(target), overrides.normalize()
            overrides.check(target, opened.columns)
            profile = profiling.profile_table(opened, target, overrides.keep_na)
            proposal = inference.propose(profile, target, overrides, now)
            yield Examination(source, to_contract_types(opened, profile, proposal), profile, proposal)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DataError(
            f"the disk that holds {Path.cwd()} is full; nothing was changed: make room, then adopt again"
        ) from None
    finally:
        applying.clear()


def adopt_table(found: Examination, settings: Settings, project: Project) -> Path:
    """Make this the project's table, atomically; returns the backup folder of the previous files.

    Raises:
        ConfigError: a file of the project does not have the expected structure.
        DataError: a data issue prevents it, or the table cannot be read a second time.
    """
    refused = [issue for issue in found.proposal.issues if issue.severity == "refused"]
    if refused:
        where = f"'{refused[0].column}': " if refused[0].column else ""
        raise DataError(f"{where}{refused[0].kind}: {refused[0].evidence}; {refused[0].remedy}")
    raw, source = RAW / f"{found.proposal.name}.parquet", _describe_source(found.source)
    _stage_file(paths.CONTRACT, writing.render_contract(found.proposal, _read_text(paths.CONTRACT), source))
    _stage_file(paths.PARAMS, writing.render_params(found.proposal, _read_text(paths.PARAMS), raw))
    _stage_file(paths.DECISIONS, writing.render_decisions(found.proposal, _read_text(paths.DECISIONS)))
    # The new files must be readable by every command.
    contract, params = Contract.load(_find_current(paths.CONTRACT)), project.load_params(_find_current(paths.PARAMS))
    record = config_model.load(_find_current(paths.DECISIONS), data_card.Record)
    package = project.folder
    _stage_file(package / SOURCE, writing.SOURCE)
    _stage_file(
        package / FEATURES, writing.remove_features(_read_text(package / FEATURES), _list_parameters(found.proposal))
    )
    _stage_file(PYPROJECT, writing.remove_example(_read_text(PYPROJECT)))
    _stage_file(MAKEFILE, writing.render_makefile(_read_text(MAKEFILE), raw))
    _stage_file(
        README, writing.render_readme(_read_text(README), contract, params.split.by, found.profile.rows, source, raw)
    )
    counts, cards = _count_ingested(found, contract), package / "cards"
    _stage_file(data_card.PATH, data_card.render_card(_build_sample(found, contract), contract, counts, record, cards))
    (applying.NEW / raw).parent.mkdir(parents=True, exist_ok=True)
    writing.write_parquet(found.rows, applying.NEW / raw)
    return applying.swap(_list_obsolete(settings, found.proposal.name))


def list_overwritten_files(package: Path) -> list[Path]:
    """List the user's files that adopting replaces or removes; `package` is the folder of their code."""
    return [
        paths.CONTRACT,
        paths.PARAMS,
        paths.DECISIONS,
        README,
        MAKEFILE,
        package / SOURCE,
        package / FEATURES,
        *_list_example_tests(),
    ]


def _stage_file(path: Path, text: str) -> None:
    """Write a file's new text below `NEW`, unless it is unchanged."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        (applying.NEW / path).parent.mkdir(parents=True, exist_ok=True)
        (applying.NEW / path).write_text(text, encoding="utf-8")


def _find_current(path: Path) -> Path:
    return applying.NEW / path if (applying.NEW / path).is_file() else path


def _build_sample(found: Examination, contract: Contract) -> pl.DataFrame:
    """Build the profile's sample with the names and types of the contract."""
    sources = found.proposal.sources
    return found.profile.sample.select(
        pl.col(sources[column.name]).cast(tables.DTYPES[column.type]).alias(column.name) for column in contract.columns
    ).drop_nulls(contract.target.name)


def _count_ingested(found: Examination, contract: Contract) -> dict[str, int]:
    """Compute the counts that `ingest` would report, see `data_card.render_card`."""
    unlabelled = found.profile.columns[found.proposal.sources[contract.target.name]].missing
    return {"rows": found.profile.rows - unlabelled, "rows_after_until": 0, "rows_without_label": unlabelled}


def _list_obsolete(settings: Settings, name: str) -> list[Path]:
    """List what belongs to the previous table: its rows, artifacts made from them, and the example's tests."""
    former = yaml.safe_load(_read_text(paths.PARAMS))
    raw = Path(former["data"]["raw"])
    gone = [
        raw,
        raw.with_name(raw.name + ".dvc"),
        *(Path(name) for name in ("dvc.lock", "var/run.json")),
        paths.TABLE,
        *paths.SPLITS.values(),
        paths.MODEL.parent,
        paths.BUNDLE,
        paths.PROFILE_BINS,
        # One by one, because the new data card is written to the same folder.
        *(paths.REPORTS.iterdir() if paths.REPORTS.is_dir() else ()),
        settings.serving_folder,
        *_list_example_tests(),
    ]
    if "://" not in settings.prediction_log:
        gone.append(Path(settings.prediction_log))
    if yaml.safe_load(_read_text(paths.CONTRACT)).get("name") == name:
        # Model versions belong to one contract: the same name now starts another model.
        gone += [Path(settings.tracking_uri.removeprefix("sqlite:///")), Path(settings.artifact_root)]
    here = Path.cwd()
    return [path for path in gone if "://" not in str(path) and path.resolve().is_relative_to(here)]


def to_contract_types(opened: OpenTable, profile: TableProfile, proposal: Proposal) -> pl.LazyFrame:
    """Convert the rows of a table to the names and types of its contract."""
    at = {name: str(position) for position, name in enumerate(opened.columns)}
    plan = {at[name]: column.parse for name, column in profile.columns.items()}
    types = {column["name"]: tables.DTYPES[column["type"]] for column in proposal.columns}

    def read_batch(batch: pl.DataFrame) -> pl.DataFrame:
        values, _ = read_columns(batch, plan)
        return values.select(
            pl.col(at[proposal.sources[name]]).cast(dtype).alias(name) for name, dtype in types.items()
        )

    return opened.rows.map_batches(read_batch, schema=types, streamable=True)


def _list_parameters(proposal: Proposal) -> list[str]:
    """List the parameter names of the columns that derived features may use."""
    roles = {column["name"]: column.get("role", "feature") for column in proposal.columns}
    return [to_parameter_name(name) for name, role in roles.items() if role in ("feature", "time")]


def _describe_source(source: str) -> str:
    return "a query" if "://" in source else Path(source).name


def _list_example_tests() -> list[Path]:
    return sorted(TESTS.rglob("test_example_*.py"))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist; run this from the project's folder, or restore it from git"
        ) from None
