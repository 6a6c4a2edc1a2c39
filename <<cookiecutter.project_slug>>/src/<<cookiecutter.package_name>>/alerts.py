"""The alerts that monitoring raises, and the functions that receive them.

Notifications go to `reports/monitoring/alerts.jsonl`, and to the sinks that the settings ML_ALERT_… name.

A rule of your own is a function and an entry in `ALERTS`:

    def few_rows(result: Result) -> Iterator[alerts.Finding]:
        if result.volume.rows < 1000:
            seen, steps = f"{result.volume.rows} rows", ("Check that requests reach the server.",)
            yield alerts.Finding("warning", "fewer rows than usual", seen, steps, "insufficient-data")

A sink of your own is a function and an entry in `SINKS`; an exception means that the alerts are sent again later:

    def page(notifications: Sequence[alerts.Notification]) -> None:
        for one in notifications:
            pager.send(one.title, one.text)
"""

from flywheel_ml.monitoring import alerts

SINKS: tuple[alerts.SendFunction, ...] = ()

ALERTS: tuple[alerts.Rule, ...] = (*alerts.STANDARD_RULES,)
