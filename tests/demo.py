"""Runs every step once on real data: bake, train, serve, predict, label, score, monitor.

`make demo` runs this. It checks every step, and the exit status is 0 only if all succeed. The
project stays in build/demo. With your own table (`make demo DATA=… TARGET=…`), the project adopts
that table first.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from cookiecutter.main import cookiecutter
from rich.console import Console
from rich.markup import escape

from checkout import REPOSITORY, copy_template

OUTPUT = REPOSITORY / "build" / "demo"
ROWS = 500
PATIENCE_S = 60.0
VERDICTS = {0: "ok", 3: "insufficient data", 4: "drift", 5: "degraded"}

# Runs in the project's Python; prints scored rows, their predictions and the input columns.
SAMPLE = """
import json, sys
from pathlib import Path
import polars as pl
from flywheel_ml.core.contract import Contract
contract = Contract.load(Path("contract.yaml"))
rows = pl.read_parquet("build/scored.parquet")
rows = rows.filter(pl.col(contract.target.name).is_not_null())
rows = rows.gather_every(max(1, rows.height // ROWS))
names = [column.name for column in (contract.id, *contract.inputs) if column]
print(json.dumps({
    "instances": json.loads(rows.select(pl.col(names).name.keep()).write_json()),
    "labels": rows[contract.target.name].to_list(),
    "predictions": rows["prediction"].to_list(),
    "scores": rows["score"].to_list(),
    "columns": [column.model_dump(mode="json") for column in contract.inputs],
}))
""".replace("ROWS", str(ROWS))

console = Console(highlight=False, soft_wrap=True)


class DemoError(Exception):
    """A step failed; the message says what was expected and what happened."""


class Demo:
    """The steps of the demo and their durations.

    Args:
        table: a table to adopt, and the column to predict; the flights of the example if not given.
    """

    def __init__(self, table: tuple[Path, str] | None = None) -> None:
        self.table = table
        self.name = name_project(table[0].name) if table else "Flight Delays"
        self.slug = self.name.lower().replace(" ", "-")
        self.project = OUTPUT / self.slug
        self.seconds: dict[str, float] = {}
        self.notes: list[tuple[str, str]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time a step; print what is appended to the yielded list."""
        console.print(f"[bold]▸ {name}[/]")
        notes: list[str] = []
        start = time.perf_counter()
        yield notes
        self.seconds[name] = time.perf_counter() - start
        note = "; ".join(notes)
        self.notes.append((name, note))
        console.print(f"  [green]✓[/] {self.seconds[name]:6.1f} s  {escape(note)}")

    def run_all(self) -> None:
        """Run all steps in order."""
        with self.step("bake the project") as notes:
            if self.project.exists():
                shutil.rmtree(self.project)
                notes.append("replaced the previous one")
            self.bake()
            notes.append(f"{sum(1 for path in self.project.rglob('*') if path.is_file())} files")
        with self.step("install its packages"):
            self.make("install", show=True)
        if self.table is not None:
            with self.step("make adopt: your table instead of the example"):
                data, target = self.table
                self.make("adopt", f"DATA={data}", f"TARGET={target}", "ARGS=--yes", show=True)
        with self.step("make run: data, six stages, gates, registry, rollout") as notes:
            self.make("run", show=True)
            outcome = json.loads((self.project / "var" / "run.json").read_text())
            check(outcome["role"] == "champion", f"the first model is {outcome['role']}")
            notes.append(f"version {outcome['version']} is champion")
        with self.step("make run again: nothing has changed") as notes:
            text = self.make("run")
            check("Up to date" in text, f"it did something: {text[-300:]}")
            notes.append("did nothing, without starting a server")
        with self.step(f"make score: {'all rows' if self.table else 'the next month'}") as notes:
            raw = [
                f"INPUT={path}" for path in self.project.glob("data/raw/*.parquet") if self.table
            ]
            notes.append(self.make("score", *raw).strip().splitlines()[-1])
        with self.step("make monitor: what was scored, against the reference") as notes:
            notes.append(self.monitor("SCORED=build/scored.parquet"))
        with self.step("serve, up to the first answer") as notes:
            server, address = self.serve()
            notes.append(address)
        try:
            with httpx.Client(base_url=address, timeout=30) as client:
                self.send_requests(client)
        finally:
            with self.step("stop the server") as notes:
                notes.append(f"drained, exit status {stop(server)}")
        check(server.returncode == 0, f"the server's exit status is {server.returncode}")
        with self.step("make monitor: what was logged, with its labels") as notes:
            notes.append(self.monitor())

    def bake(self) -> None:
        """Bake the default project without questions."""
        OUTPUT.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory() as scratch:
            settings = Path(scratch) / "cookiecutter.yaml"
            settings.write_text(f"replay_dir: {json.dumps(scratch)}\n", encoding="utf-8")
            template = copy_template(Path(scratch) / "template")
            cookiecutter(
                str(template),
                no_input=True,
                extra_context={"project_name": self.name},
                output_dir=str(OUTPUT),
                config_file=str(settings),
            )

    def send_requests(self, client: httpx.Client) -> None:
        """Send valid and malformed predictions, and labels."""
        with self.step("POST /predict: rows, one by one") as notes:
            python = str(self.project / ".venv" / "bin" / "python")
            sample = json.loads(self.run(python, "-c", SAMPLE))
            start = time.perf_counter()
            answers = [predict(client, instance) for instance in sample["instances"]]
            speed = len(answers) / (time.perf_counter() - start)
            batch = zip(sample["predictions"], sample["scores"], strict=True)
            for answer, expected in zip(answers, batch, strict=True):
                given = (answer["prediction"], score(answer))
                check(given == expected, f"the API: {given}, batch scoring: {expected}")
            notes.append(
                f"{len(answers)} rows answered and logged ({speed:,.0f} a second over one "
                "connection), each equal to batch scoring's to the last bit"
            )
        with self.step("POST /predict: malformed requests") as notes:
            for name, broken in make_malformed(sample["instances"][0], sample["columns"]).items():
                refused = client.post("/predict", json={"instances": [broken]})
                status = refused.status_code
                check(status == 422, f"{name}: status {status}: {refused.text}")
                fault = refused.json()["errors"][0]
                notes.append(f"{name}: 422, {fault['field']}: {fault['rule']}")
        with self.step("POST /feedback: labels") as notes:
            labels = [
                {"id": answer["id"], "label": label}
                for answer, label in zip(answers, sample["labels"], strict=True)
            ]
            response = client.post("/feedback", json={"labels": labels})
            check(response.status_code == 200, f"status {response.status_code}: {response.text}")
            notes.append(f"{len(labels)} labels logged")

    def serve(self) -> tuple[subprocess.Popen[str], str]:
        """Start the server on a free port; returns it and its address once it answers."""
        with (self.project / "var" / "serve.log").open("w") as log:
            server = subprocess.Popen(
                [str(self.project / ".venv" / "bin" / self.slug), "serve", "--port", "0"],
                cwd=self.project,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        if found is None:
            stop(server)
            raise DemoError(f"the server did not start: {line!r}; see var/serve.log")
        ready = httpx.get(f"{found[0]}/readyz", timeout=PATIENCE_S)
        check(ready.status_code == 200, f"/readyz answers {ready.status_code}")
        return server, found[0]

    def monitor(self, *arguments: str) -> str:
        """Monitor a window; any verdict is fine, an error is not."""
        done = self.call("make", "monitor", *arguments)
        text = done.stdout + done.stderr
        verdict = next((word for word in VERDICTS.values() if f"\n{word}: " in f"\n{text}"), "")
        check(bool(verdict), text[-1500:])
        line = next(line for line in text.splitlines() if line.startswith(f"{verdict}: "))
        return line.replace(str(self.project) + os.sep, "")

    def make(self, *arguments: str, show: bool = False) -> str:
        """Run make in the project; with `show`, what it prints is seen as it comes."""
        return self.run("make", "--no-print-directory", *arguments, show=show)

    def run(self, *command: str, show: bool = False) -> str:
        """Run a command in the project to its end."""
        done = self.call(*command, show=show)
        shown = " ".join(command[:3])
        check(done.returncode == 0, f"`{shown}` failed: {(done.stdout or '')[-2000:]}")
        return done.stdout or ""

    def call(self, *command: str, show: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a command in the project; returns the result even if it fails."""
        output = None if show else subprocess.PIPE
        return subprocess.run(
            command, cwd=self.project, stdout=output, stderr=output, text=True, check=False
        )


def predict(client: httpx.Client, instance: dict[str, Any]) -> dict[str, Any]:
    """Send a prediction and check that the champion answered."""
    answer = client.post("/predict", json={"instances": [instance]})
    check(answer.status_code == 200, f"status {answer.status_code}: {answer.text}")
    body = answer.json()
    check(body["degraded"] is False, f"a degraded answer: {body}")
    (prediction,) = body["predictions"]
    found: dict[str, Any] = prediction
    return found


def score(answer: dict[str, Any]) -> float:
    """Return the score of an answer as batch scoring defines it."""
    probabilities = answer.get("probabilities")
    if probabilities is None:
        return float(answer["prediction"])
    found = [float(share) for share in probabilities.values()]
    return found[-1] if len(found) == 2 else max(found)


def make_malformed(
    instance: dict[str, Any], columns: list[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return malformed variants of a row, as far as its columns allow."""
    first = columns[0]["name"]
    found = {
        "unknown field": {**instance, f"{first}_": 1},
        "wrong type": {**instance, first: {}},
    }
    for column in columns:
        name = column["name"]
        if not column["nullable"] and "missing field" not in found:
            found["missing field"] = {key: instance[key] for key in instance if key != name}
        if column["range"]:
            above = column["range"][1] + 1
            beyond = int(above) if column["type"] == "integer" else above
            found["out of range"] = {**instance, name: beyond}
    return found


def name_project(name: str) -> str:
    """Derive a project name from a file name."""
    stem = unicodedata.normalize("NFKD", name.split(".")[0]).encode("ascii", "ignore").decode()
    found = re.findall(r"[A-Za-z0-9]+", stem)
    name = " ".join(word.capitalize() for word in found)[:40].strip()
    # `iris-table` shadows no library, `test` or `data` might.
    return f"{name} Table" if name[:1].isalpha() else "My Table"


def check(holds: bool, otherwise: str) -> None:
    """Raise `DemoError` unless a condition holds."""
    if not holds:
        raise DemoError(otherwise)


def stop(process: subprocess.Popen[str]) -> int:
    """Stop a process group by SIGTERM, then by SIGKILL."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.stdout is not None:
        process.stdout.close()
    return process.returncode


def main(arguments: list[str]) -> int:
    """Run the demo; returns the exit status.

    Args:
        arguments: nothing, or a table's file and the column to predict.
    """
    if arguments and len(arguments) != 2:
        console.print("[red]✗ give both: make demo DATA=your-table.csv TARGET=column[/]")
        return 2
    table = None
    if arguments:
        path = Path(arguments[0]).expanduser().absolute()
        if not path.exists():
            console.print(f"[red]✗ DATA: {escape(str(path))} does not exist[/]")
            return 2
        table = path, arguments[1]
    demo = Demo(table)
    try:
        demo.run_all()
    except DemoError as error:
        console.print(f"[red]✗ {escape(str(error))}[/]")
        console.print(f"The project as it is: {demo.project}")
        return 1
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130
    console.print("\n[bold green]All steps succeeded.[/]\n")
    for name, note in demo.notes:
        console.print(f"  {demo.seconds[name]:6.1f} s  [bold]{name}[/]")
        if note:
            console.print(f"            [dim]{escape(note)}[/]")
    install = demo.seconds["install its packages"]
    total = sum(demo.seconds.values())
    console.print(f"\n  {total - install:6.1f} s  without installation, {total:.1f} s with it")
    place = (
        demo.project.relative_to(Path.cwd())
        if demo.project.is_relative_to(Path.cwd())
        else demo.project
    )
    console.print(
        f"\nExplore it: [bold]cd {escape(str(place))}[/], then `make ui` (runs and models), "
        "`make serve` (and /docs in a browser), `make report`."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
