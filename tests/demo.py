"""Turn the whole wheel once, on real data: bake, train, serve, predict, label, score, monitor.

`make demo` runs this. Every step is checked; the exit status is 0 only if all of them truly worked.
What it made stays in build/demo/flight-delays to explore.
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
SLUG = "flight-delays"
ROWS = 500
PATIENCE_S = 60.0
VERDICTS = {0: "ok", 3: "insufficient data", 4: "drift", 5: "degraded"}

# Printed by the project's own Python: rows of the month that the model has not seen, as JSON.
SAMPLE = """
import json, sys
from pathlib import Path
import polars as pl
from flight_delays.contract import Contract
contract = Contract.load(Path("contract.yaml"))
rows = pl.read_parquet("build/scored.parquet")
rows = rows.filter(pl.col(contract.target.name).is_not_null()).gather_every(rows.height // ROWS)
names = [column.name for column in (contract.id, *contract.inputs) if column]
print(json.dumps({
    "instances": json.loads(rows.select(pl.col(names).name.keep()).write_json()),
    "labels": rows[contract.target.name].to_list(),
    "scores": rows["score"].to_list(),
}))
""".replace("ROWS", str(ROWS))

console = Console(highlight=False, soft_wrap=True)


class DemoError(Exception):
    """A step that did not do what it should; the message says which and what came instead."""


class Demo:
    """The steps and what each took."""

    def __init__(self) -> None:
        self.project = OUTPUT / SLUG
        self.seconds: dict[str, float] = {}
        self.told: list[tuple[str, str]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time a step; what is appended to the yielded list is printed with it."""
        console.print(f"[bold]▸ {name}[/]")
        notes: list[str] = []
        start = time.perf_counter()
        yield notes
        self.seconds[name] = time.perf_counter() - start
        note = "; ".join(notes)
        self.told.append((name, note))
        console.print(f"  [green]✓[/] {self.seconds[name]:6.1f} s  {escape(note)}")

    def turn(self) -> None:
        """All steps, in order."""
        with self.step("bake the project") as notes:
            if self.project.exists():
                shutil.rmtree(self.project)
                notes.append("the one that was there is replaced")
            self.bake()
            notes.append(f"{sum(1 for path in self.project.rglob('*') if path.is_file())} files")
        with self.step("install its packages"):
            self.make("install", show=True)
        with self.step("make run: data, six stages, gates, registry, rollout") as notes:
            self.make("run", show=True)
            outcome = json.loads((self.project / "var" / "run.json").read_text())
            check(outcome["role"] == "champion", f"the first model is {outcome['role']}")
            notes.append(f"version {outcome['version']} is champion")
        with self.step("make run again: nothing has changed") as notes:
            text = self.make("run")
            check("Up to date" in text, f"it did something: {text[-300:]}")
            notes.append("did nothing, without starting a server")
        with self.step("make score: the month that the model has not seen") as notes:
            notes.append(self.make("score").strip().splitlines()[-1])
        with self.step("make monitor: that month against the reference") as notes:
            notes.append(self.monitor("SCORED=build/scored.parquet"))
        with self.step("serve, up to the first answer") as notes:
            server, address = self.serve()
            notes.append(address)
        try:
            with httpx.Client(base_url=address, timeout=30) as client:
                self.talk(client)
        finally:
            with self.step("stop the server") as notes:
                notes.append(f"drained, exit status {stop(server)}")
        check(server.returncode == 0, f"the server's exit status is {server.returncode}")
        with self.step("make monitor: what was logged, with its labels") as notes:
            notes.append(self.monitor())

    def bake(self) -> None:
        """The default project, as `cookiecutter` would ask for it, without its questions."""
        OUTPUT.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory() as scratch:
            settings = Path(scratch) / "cookiecutter.yaml"
            settings.write_text(f"replay_dir: {json.dumps(scratch)}\n", encoding="utf-8")
            template = copy_template(Path(scratch) / "template")
            cookiecutter(
                str(template), no_input=True, output_dir=str(OUTPUT), config_file=str(settings)
            )

    def talk(self, client: httpx.Client) -> None:
        """Predictions good and bad, and labels."""
        with self.step(f"POST /predict: {ROWS} flights, one by one") as notes:
            python = str(self.project / ".venv" / "bin" / "python")
            sample = json.loads(self.run(python, "-c", SAMPLE))
            start = time.perf_counter()
            answers = [predict(client, instance) for instance in sample["instances"]]
            speed = len(answers) / (time.perf_counter() - start)
            for answer, score in zip(answers, sample["scores"], strict=True):
                given = answer["probabilities"]["true"]
                check(given == score, f"the API says {given}, batch scoring said {score}")
            notes.append(
                f"{len(answers)} answered and logged ({speed:,.0f} a second over one connection), "
                "each equal to batch scoring's to the last bit"
            )
        with self.step("POST /predict: malformed requests") as notes:
            for name, broken in malformed(sample["instances"][0]).items():
                refused = client.post("/predict", json={"instances": [broken]})
                status = refused.status_code
                check(status == 422, f"{name}: status {status}: {refused.text}")
                fault = refused.json()["errors"][0]
                notes.append(f"{name}: 422, {fault['field']}: {fault['rule']}")
        with self.step("POST /feedback: what turned out") as notes:
            labels = [
                {"id": answer["id"], "label": label}
                for answer, label in zip(answers, sample["labels"], strict=True)
            ]
            kept = client.post("/feedback", json={"labels": labels})
            check(kept.status_code == 200, f"status {kept.status_code}: {kept.text}")
            notes.append(f"{len(labels)} labels kept")

    def serve(self) -> tuple[subprocess.Popen[str], str]:
        """Start the server on a free port; returns it and its address once it answers."""
        server = subprocess.Popen(
            [str(self.project / ".venv" / "bin" / SLUG), "serve", "--port", "0"],
            cwd=self.project,
            stdout=subprocess.PIPE,
            stderr=(self.project / "var" / "serve.log").open("w"),
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
        """Judge a window; every verdict is an honest answer, an error is not."""
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
        """Run a command in the project, whatever comes of it."""
        output = None if show else subprocess.PIPE
        return subprocess.run(
            command, cwd=self.project, stdout=output, stderr=output, text=True, check=False
        )


def predict(client: httpx.Client, instance: dict[str, Any]) -> dict[str, Any]:
    """One prediction, checked to be the champion's own."""
    answer = client.post("/predict", json={"instances": [instance]})
    check(answer.status_code == 200, f"status {answer.status_code}: {answer.text}")
    body = answer.json()
    check(body["degraded"] is False, f"a degraded answer: {body}")
    (prediction,) = body["predictions"]
    found: dict[str, Any] = prediction
    return found


def malformed(instance: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The same flight, wrong in four ways."""
    without = {name: value for name, value in instance.items() if name != "carrier"}
    return {
        "unknown field": {**instance, "distnace": 1},
        "missing field": without,
        "wrong type": {**instance, "distance": "far"},
        "out of range": {**instance, "distance": -5},
    }


def check(holds: bool, otherwise: str) -> None:
    """Stop the demo unless something holds."""
    if not holds:
        raise DemoError(otherwise)


def stop(process: subprocess.Popen[str]) -> int:
    """End a process group politely, then for sure."""
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


def main() -> int:
    """Run the demo; returns the exit status."""
    demo = Demo()
    try:
        demo.turn()
    except DemoError as error:
        console.print(f"[red]✗ {escape(str(error))}[/]")
        console.print(f"The project as it is: {demo.project}")
        return 1
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130
    console.print("\n[bold green]The wheel has turned.[/]\n")
    for name, note in demo.told:
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
    sys.exit(main())
