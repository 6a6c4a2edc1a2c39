"""The HTTP app: the routes of the library, and yours.

A route of your own is added before `return`, as in any FastAPI app. It asks for no API key unless you add that
(docs/how-to.md):

    @app.get("/threshold")
    async def threshold() -> dict[str, float]:
        return {"threshold": 0.5}
"""

from collections.abc import Sequence

from fastapi import FastAPI
from flywheel_ml.core.features import Feature
from flywheel_ml.core.settings import Settings
from flywheel_ml.serving import app as library
from flywheel_ml.serving.app import Metrics, Spans


def create_app(settings: Settings, metrics: Metrics, spans: Spans | None, features: Sequence[Feature]) -> FastAPI:
    """Build the app that `make serve` runs, once in each worker."""
    app = library.create_app(settings, metrics, spans, features)
    return app  # noqa: RET504 (routes go in between)
