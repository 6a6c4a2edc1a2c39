"""Realistic table files, and the results of adopting them."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from flywheel_ml.core.contract import Contract
from flywheel_ml.data.adoption import adopt, inference, profiling
from flywheel_ml.data.adoption.inference import Proposal
from flywheel_ml.data.adoption.issues import Issue
from flywheel_ml.data.adoption.overrides import Overrides
from flywheel_ml.data.adoption.profiling import TableProfile
from flywheel_ml.data.formats import reading
from flywheel_ml.utils import config_model

NOW = datetime(2024, 6, 1)


def profile_source(source: Path | str, target: str, query: str = "") -> TableProfile:
    """Profile a file or a query; scratch files go into a folder next to the file."""
    folder = Path(str(source).rpartition("://")[2]).parent / "scratch"
    folder.mkdir(parents=True, exist_ok=True)
    with reading.open_table(str(source), query, folder) as opened:
        return profiling.profile_table(opened, target)


def adopt_file(source: Path, target: str, **said: Any) -> tuple[Contract, pl.DataFrame]:
    """Adopt a file; returns the contract and the stored rows."""
    with reading.open_table(str(source)) as opened:
        profile = profiling.profile_table(opened, target, said.get("keep_na", ()))
        proposal = inference.propose(profile, target, Overrides(**said), NOW)
        rows = adopt.to_contract_types(opened, profile, proposal).collect()
    columns = list(proposal.columns)
    return config_model.parse({"name": proposal.name, "columns": columns}, Contract, "contract.yaml"), rows


def propose(table: pl.DataFrame, target: str, folder: Path, **said: Any) -> Proposal:
    """Write a frame to a Parquet file and return what adopt proposes for it."""
    path = folder / "shop.parquet"
    table.write_parquet(path)
    return inference.propose(profile_source(path, target), target, Overrides(**said), NOW)


def make_shop_table(rows: int = 400, **columns: Any) -> pl.DataFrame:
    """Make a small table without issues: `spent` weakly predicts `bought`; further columns are optional."""
    rng = np.random.default_rng(1)
    spent = rng.normal(50, 10, rows)
    bought = np.where(spent + rng.normal(0, 20, rows) > 55, "buyer", "guest")
    shelf = rng.choice(["left", "middle", "right"], rows)
    return pl.DataFrame({"spent": spent, "shelf": shelf, **columns, "bought": bought})


def find_column(proposal: Proposal, name: str) -> dict[str, Any]:
    """Return a column as contract.yaml would have it."""
    return next(column for column in proposal.columns if column["name"] == name)


def find_role(proposal: Proposal, name: str) -> str:
    """Return the role of a column."""
    return str(find_column(proposal, name).get("role", "feature"))


def issue_set(issues: Sequence[Issue]) -> set[tuple[str, str, str]]:
    """Return issues as (kind, column, severity)."""
    return {(issue.kind, issue.column, issue.severity) for issue in issues}
