"""Metrics of other processes, read from files in the serving folder and added to the server's own.

Whatever a file holds, `/metrics` stays a valid exposition: a file is read completely or not at all.
"""

import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from flywheel_ml.core.serving_folder import ALERT_METRICS, MONITORING_METRICS

FILES = (MONITORING_METRICS, ALERT_METRICS)
PREFIX = "monitoring_"
"""Every name begins with this, so no file can shadow a series of the server."""
MAX_BYTES = 262_144
MAX_SERIES = 1000
FAULT = "monitoring_file_error"

_NAME, _LABEL = re.compile(r"monitoring_[a-z0-9_]+"), re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


class TextfileReader:
    """Reads the metrics in the files of a folder; an unchanged file is not read again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[object, list[Metric]]] = {}

    def collect(self) -> Iterator[Metric]:
        """Return the metrics of all files, and for each file that exists whether it cannot be used."""
        faults = GaugeMetricFamily(
            FAULT, "1 if a file of metrics in the serving folder cannot be used.", labels=["file"]
        )
        for name in FILES:
            try:
                yield from self._read(name)
            except FileNotFoundError:
                continue
            except (OSError, ValueError):
                self._known.pop(name, None)
                faults.add_metric([name], 1)
            else:
                faults.add_metric([name], 0)
        yield faults

    def _read(self, name: str) -> list[Metric]:
        # Without blocking: a pipe in the place of the file must not hold up a scrape.
        descriptor = os.open(self._folder / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ValueError(f"{name} is not a file")
            version = (found.st_ino, found.st_mtime_ns, found.st_size)
            known = self._known.get(name)
            if known is None or known[0] != version:
                content = stream.read(MAX_BYTES + 1)
                known = self._known[name] = (version, parse(content))
        return known[1]


def parse(content: bytes) -> list[Metric]:
    """Parse an exposition of gauges.

    Raises:
        ValueError: it is too large, incomplete or malformed, or has a series twice or under a foreign name.
    """
    if len(content) > MAX_BYTES or (content and not content.endswith(b"\n")):
        raise ValueError("the file is too large or incomplete")
    families: dict[str, GaugeMetricFamily] = {}
    seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
    try:
        for parsed in text_string_to_metric_families(content.decode()):
            if parsed.name in families or not _NAME.fullmatch(parsed.name) or parsed.name == FAULT:
                raise ValueError("a family has another name, or occurs twice")
            family = families[parsed.name] = GaugeMetricFamily(parsed.name, parsed.documentation)
            for sample in parsed.samples:
                series = (sample.name, frozenset(sample.labels.items()))
                if sample.name != parsed.name or series in seen or len(seen) >= MAX_SERIES:
                    raise ValueError("a series has another name, occurs twice, or is one too many")
                if not all(_LABEL.fullmatch(label) for label in sample.labels) or math.isnan(sample.value):
                    raise ValueError("a label or a value is invalid")
                seen.add(series)
                family.add_sample(sample.name, sample.labels, float(sample.value))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"the file is malformed: {error}") from None
    return list(families.values())
