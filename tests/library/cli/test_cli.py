"""The command line: what each verb says, and that every mistake is one line and an exit status."""

import json
import re
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest
from typer.main import get_command

from flywheel_ml.cli import terminal, verbs
from flywheel_ml.core import paths
from flywheel_ml.core.bundle import BACKGROUND, Bundle
from flywheel_ml.core.contract import Contract, columns_from_rows
from flywheel_ml.core.settings import Settings
from flywheel_ml.model.registration import roles
from flywheel_ml.model.registration.registry import CHAMPION, Registry
from flywheel_ml.monitoring.result import EXIT_STATUS
from flywheel_ml.prediction_log import Prediction, Writer, dumps, new_id, now_us
from library.helpers import project
from library.helpers.experiments import Experiment, Version
from library.helpers.sinks import Hook, serve


class Said(NamedTuple):
    """Exit status and lines of one command."""

    status: int
    output: str
    errors: str


class Say:
    """Calls the command line in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch = monkeypatch
        self.capsys = capsys

    def __call__(self, *words: str) -> Said:
        self.monkeypatch.setattr(sys, "argv", ["flight-delays", *words])
        with pytest.raises(SystemExit) as left:
            verbs.main(project.PROJECT)
        output, errors = self.capsys.readouterr()
        return Said(int(left.value.code or 0), output, errors)


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    monkeypatch.setattr(terminal.console, "width", 200)
    return Say(monkeypatch, capsys)


def test_help_names_every_verb_with_a_line_and_make_has_each(say: Say) -> None:
    told = say("--help")
    assert told.status == 0
    commands = get_command(verbs.app).commands  # type: ignore[attr-defined]
    makefile = (project.ROOT / "Makefile").read_text()
    for verb, command in commands.items():
        assert re.search(rf"\b{verb}\b.*{re.escape(command.get_short_help_str(200)[:20])}", told.output), verb
        assert f"$(CLI) {verb}" in makefile, f"make has no target for `{verb}`"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serv"], "No such command 'serv'"),
        (["score"], "Missing argument 'INPUT'"),
        (["score", "a.parquet"], "Missing argument 'OUTPUT'"),
        (["run", "--forse"], "No such option"),
        (["serve", "--port", "many"], "'many' is not a valid int"),
        (["serve", "--workers", "0"], "0 is not in the range"),
        (["monitor", "--until", "tomorrow"], "'tomorrow' does not match the formats"),
        (["window", "o.parquet", "--since", "yesterday"], "'yesterday' does not match the formats"),
        (["explain"], "Missing option '--id'"),
        (["rollout", "forward"], "No such command 'forward'"),
        (["experiment", "plan"], "Missing option '--effect'"),
        (["experiment", "report", "--better", "sideways"], "'sideways' is not one of"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_that_names_it(say: Say, words: list[str], said: str) -> None:
    told = say(*words)
    assert told.status == 2
    assert told.output == ""
    assert told.errors.startswith("error: ")
    assert said in told.errors
    assert told.errors.rstrip().endswith("--help`")
    assert told.errors.count("\n") == 1


def test_without_a_verb_the_help_is_shown_and_nothing_is_done(say: Say) -> None:
    told = say()
    assert told.status == 2
    assert "Usage" in told.output + told.errors


@pytest.mark.parametrize(
    "words",
    [
        ["run"],
        ["rollout", "status"],
        ["monitor"],
        ["alerts"],
        ["score", "a", "b"],
        ["window", "o"],
        ["experiment", "report"],
        ["experiment", "plan", "--effect", "1"],
    ],
)
def test_outside_a_project_every_verb_says_what_is_missing(
    say: Say, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = say(*words)
    assert told.status != 0
    assert re.match(r"error: (params|contract)\.yaml", told.errors), told.errors
    assert told.errors.count("\n") == 1


def test_from_the_command_line_a_table_is_scored_and_judged(say: Say, finished: Path) -> None:
    told = say("score", str(project.RAW), "build/scored.parquet")
    assert told.status == 0, told.errors
    assert re.fullmatch(
        r"2,000 rows in \d+\.\d s \([\d,]+ per second\) by version 1 → build/scored\.parquet",
        told.output.splitlines()[-1],
    )
    assert pl.read_parquet("build/scored.parquet").height == 2000

    judged = say("monitor", "build/scored.parquet")
    verdict = judged.output.splitlines()[-1].partition(":")[0]
    assert judged.status == EXIT_STATUS[verdict]  # type: ignore[index]
    report = judged.output.splitlines()[-1].rpartition("report: ")[2]
    assert Path(report).read_text().startswith("<!doctype html>")


def test_sink_that_never_answers_is_one_line_and_the_alert_is_kept(
    say: Say, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "log (reports/monitoring/alerts.jsonl) 1 sent" in say("alerts", "--test").output
    # An empty log is too little data to judge, which is an alert.
    monkeypatch.setenv("ML_ALERT_TIMEOUT_SECONDS", "0.2")
    monkeypatch.setenv("ML_ALERT_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("ML_ALERT_WEBHOOK", f"http://127.0.0.1:{silent.getsockname()[1]}/T0KEN")
        commands = [("monitor", "--since", "2020-01-01"), ("alerts",), ("alerts", "--test")]
        for words in commands:
            found = say(*words)
            assert found.status == 1
            assert found.errors.count("\n") == 1
            assert "webhook (ML_ALERT_WEBHOOK)" in found.errors
            assert "T0KEN" not in found.output + found.errors
    hook = Hook()
    with serve(hook):
        monkeypatch.setenv("ML_ALERT_WEBHOOK", hook.url)
        assert "webhook (ML_ALERT_WEBHOOK) 1 sent" in say("alerts").output
        assert say("alerts").output.startswith("info: too little data to judge: ")
    assert hook.list_statuses() == [("insufficient-data", "firing")]


def test_a_span_of_the_raw_table_is_cut_out(say: Say, finished: Path, contract: Contract) -> None:
    if contract.time is None:
        pytest.skip("the contract has no time")
    moments = pl.read_parquet(project.RAW)[contract.time.name].sort()
    middle = str(moments[1000]).partition(".")[0]
    told = say("window", "build/later.parquet", "--since", middle, "--until", "2200-01-01")
    found = pl.read_parquet("build/later.parquet")
    assert told.output == f"{found.height:,} rows → build/later.parquet\n"
    assert 0 < found.height < 2000
    assert say("window", "build/none.parquet", "--since", "2200-01-01").errors.startswith("error: no row is between")
    assert not Path("build/none.parquet").exists()


def test_refused_model_stays_an_error_on_repeat(say: Say, finished: Path) -> None:
    settings, name = Settings.read(), Contract.load(paths.CONTRACT).name
    client, aside = Registry.open(settings, name)._client, Path("var/serving-aside")
    client.delete_registered_model_alias(name, CHAMPION)
    client.set_model_version_tag(name, "1", roles.GATES_TAG, "refused")
    settings.serving_folder.rename(aside)
    try:
        told = say("run")
        assert "Up to date: version 1, refused." in told.output
        assert (told.status, told.errors) == (1, "error: version 1 was refused by its gates and will not serve\n")
    finally:
        aside.rename(settings.serving_folder)
        client.set_model_version_tag(name, "1", roles.GATES_TAG, "passed")
        client.set_registered_model_alias(name, CHAMPION, "1")


def test_versions_are_shown_and_an_unknown_one_is_refused_by_name(say: Say, finished: Path) -> None:
    shown = say("rollout", "status")
    assert shown.status == 0, shown.errors
    assert re.search(r"^ 1 +[0-9a-f]{8} +champion +0\.\d{4} +passed", shown.output, re.MULTILINE)
    assert re.search(r"serving: version 1 since .* \(first champion\)", shown.output)
    assert re.search(r"^ champion +1 +[0-9a-f]{8} +100% +\d\d-\d\d \d\d:\d\d +0", shown.output, re.MULTILINE)
    assert "champion nothing → 1 (first champion)" in shown.output

    unknown = say("rollout", "promote", "9")
    assert (unknown.status, unknown.errors.count("\n")) == (1, 1)
    assert "has no version '9'; known: 1" in unknown.errors
    for verb in ("promote", "start"):
        assert "there is no challenger: version 1 is champion; name a version" in say("rollout", verb).errors
    assert "version 1 is already champion" in say("rollout", "start", "1").errors
    assert "--share is 2; give a number above 0" in say("rollout", "start", "--share", "2").errors
    assert "a shadow answers no requests" in say("rollout", "start", "--shadow", "--share", "0.1").errors
    assert say("rollout", "abort").output == "Serving: version 1 alone; servers follow within a second.\n"
    assert say("rollout", "rollback").errors.startswith("error: ")


@pytest.mark.parametrize("verb", ["start", "step"])
def test_canary_without_its_registry_is_an_error(finished: Path, verb: str) -> None:
    done = project.cli(finished, "canary", verb, ML_TRACKING_URI="http://127.0.0.1:9")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("error: the registry is unavailable, servers continue unchanged")


def test_a_logged_prediction_is_explained_in_a_table_and_in_json(say: Say, finished: Path, contract: Contract) -> None:
    opened = Bundle.open(Path("bundle"), features=project.PROJECT.features)
    sent = json.loads((opened.path / BACKGROUND).read_text())[0]
    told = opened.predict(columns_from_rows(opened.contract.inputs, [sent]))
    facts = (new_id(), now_us(), None, None, "champion", "1", None)
    made = Prediction(*facts, dumps(sent), dumps({}), float(told.scores[0]), 100, degraded=False)
    with Writer(Settings.read().prediction_log, "serve") as writer:
        writer.append([made]).result(10)

    shown = say("explain", "--id", made.id)
    assert shown.status == 0, shown.errors
    head, numbers, heads, *lines = shown.output.splitlines()
    assert re.match(rf"Prediction {made.id} of .* UTC, by version 1 \(champion, sha256 unknown\): .+$", head)
    found = re.match(r"(?:value|probability of .*) (-?[\d.]+) = (-?[\d.]+) \(mean of 50 training rows\) ", numbers)
    assert found is not None
    assert heads.split() == ["column", "value", "contribution", "error"]
    assert len(lines) == len(contract.inputs)
    assert all(any(column.name in line for line in lines) for column in contract.inputs)
    parts = [float(part) for line in lines for part in re.findall(r" ([+-]\d+\.\d+) ", line)[-1:]]
    score, base = map(float, found.groups())
    rounding = 10.0 ** -len(found[1].partition(".")[2])
    assert sum(parts) == pytest.approx(score - base, abs=rounding * (len(parts) + 2))
    assert "█" in lines[0]

    content = json.loads(say("explain", "--id", made.id, "--json").output)
    assert content["id"] == made.id
    assert content["base"] + sum(one["contribution"] for one in content["contributions"]) == pytest.approx(
        content["score"], rel=1e-9
    )

    unknown = say("explain", "--id", "nobody")
    assert (unknown.status, unknown.errors.count("\n")) == (1, 1)
    assert "the prediction log has no prediction 'nobody'" in unknown.errors


def test_experiment_is_planned_and_reported(say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ML_PREDICTION_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("ML_SERVING_FOLDER", str(tmp_path / "serving"))
    shutil.copyfile(project.ROOT / "params.yaml", "params.yaml")
    arms = {"2": Version(0.3, revenue=20.0), "3": Version(0.3)}
    Experiment.create(tmp_path).log(Version(None), arms, count=2000)
    told = say("experiment", "plan", "--effect", "0.5", "--metric", "revenue", "--share", "0.3")
    assert (told.status, told.errors) == (0, "")
    assert re.search(r"one look at the end +[0-9,]+ +[0-9.]+", told.output), told.output
    told = say("experiment", "report", "--metric", "revenue")
    assert told.output.startswith("Version 2 is better than the champion; nothing can be concluded about version 3")
    assert re.search(r"\n 2 +30\.0% +605 +0 +605 +19\.7 +\+9\.64 ", told.output), told.output
    assert told.output.rstrip().endswith("report: reports/experiments/revenue.html")
    found = json.loads(say("experiment", "report", "--json").output)
    assert [arm["version"] for arm in found["arms"]] == ["2", "3"]
    told = say("experiment", "report", "--metric", "revenues")
    assert (told.status, told.errors.count("\n")) == (2, 1)
    assert "did you mean 'revenue'" in told.errors


def test_lost_serving_folder_is_restored_from_the_registry(say: Say, finished: Path) -> None:
    (finished / "var" / "serving").rename(finished / "lost")
    told = say("rollout", "sync")
    assert told.output == "The serving folder holds version 1.\n"
    assert (finished / "var" / "serving" / "routing.json").is_file()


def test_interrupt_during_imports_shows_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(10)\n")
    done = project.run(tmp_path, "-m", project.PACKAGE, "--help", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_ignored_interrupt_stays_ignored_during_imports(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit(7)\n")
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    words = ("-c", ignoring, sys.executable, "-m", project.PACKAGE, "--help")
    assert project.run(tmp_path, *words, PYTHONPATH=str(tmp_path)).returncode == 7
