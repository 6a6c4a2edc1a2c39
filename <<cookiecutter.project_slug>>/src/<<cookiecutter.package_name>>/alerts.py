"""The alerts that monitoring raises.

They go to `reports/monitoring/alerts.jsonl`, and to the webhook that `ML_ALERT_WEBHOOK` names.

A rule of your own is a function and an entry in `ALERTS`:

    def few_rows(result: Result) -> Iterator[alerts.Finding]:
        if result.volume.rows < 1000:
            seen, steps = f"{result.volume.rows} rows", ("Check that requests reach the server.",)
            yield alerts.Finding("warning", "fewer rows than usual", seen, steps, "insufficient-data")
"""

from flywheel_ml.monitoring import alerts

ALERTS: tuple[alerts.Rule, ...] = (*alerts.STANDARD_RULES,)
