"""The command ml-test-score."""

from typing import Annotated

import typer

from flywheel_ml.cli.terminal import console
from flywheel_ml.core.settings import Settings
from flywheel_ml.utils.errors import ConfigError, GateRefusal

app = typer.Typer()


@app.command("ml-test-score")
def ml_test_score(
    ctx: typer.Context,
    min_score: Annotated[
        float | None, typer.Option("--min", help="Fail with exit status 1 if the final score is below this.")
    ] = None,
) -> None:
    """Compute the ML Test Score (Breck et al., 2017) from verified evidence, and write the reports."""
    if min_score is not None and not 0 <= min_score <= 7:
        raise ConfigError(f"--min is {min_score:g}; give a number from 0 to 7")
    with console.status("verifying the evidence"):
        from flywheel_ml.ml_test_score import report
        from flywheel_ml.ml_test_score.facts import collect
        from flywheel_ml.ml_test_score.score import evaluate

        ctx.obj.load_params()  # Elsewhere than in a project, this is an error.
        card = evaluate(collect(ctx.obj, Settings.read()))
        report.write(card)
    for line in report.render_text(card):
        style = "bold" if line[0].isalpha() else "yellow" if line.lstrip().startswith("→") else None
        console.print(line, style=style, markup=False, soft_wrap=True)
    console.print(
        f"[bold]ML Test Score: {card.score:g} of 7[/], the lowest section; {report.MARKDOWN}, {report.JSON}",
        soft_wrap=True,
    )
    if min_score is not None and card.score < min_score:
        raise GateRefusal(f"the ML Test Score is {card.score:g}, wanted {min_score:g}; see {report.MARKDOWN}")
