"""The application: its parts, made and put together."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException

from flywheel_ml.core.features import Feature
from flywheel_ml.core.settings import Settings
from flywheel_ml.prediction_log import Spool, Writer
from flywheel_ml.serving.api.explaining import Explainer
from flywheel_ml.serving.api.feedback import Labeller
from flywheel_ml.serving.api.inference_routes import add_inference_routes
from flywheel_ml.serving.api.routes import Service, add_routes
from flywheel_ml.serving.auth.guard import Guard
from flywheel_ml.serving.errors.problems import Problem, on_http_exception, on_problem
from flywheel_ml.serving.http.admission import Admission
from flywheel_ml.serving.http.lifecycle import RequestLifecycle
from flywheel_ml.serving.http.middleware import LifecycleMiddleware
from flywheel_ml.serving.models.manager import ModelManager
from flywheel_ml.serving.observability.backlog import Backlog
from flywheel_ml.serving.observability.logs import logger
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.serving.observability.tracing import Spans
from flywheel_ml.serving.observability.watched import WatchedWriter
from flywheel_ml.serving.prediction.batcher import Batcher
from flywheel_ml.utils.errors import ConfigError

__all__ = ["Metrics", "Spans", "create_app", "opened_log"]


def create_app(
    settings: Settings,
    metrics: Metrics | None = None,
    spans: Spans | None = None,
    features: Sequence[Feature] = (),
) -> FastAPI:
    """Build the application; nothing is opened before it starts.

    Args:
        settings: where things are, limits and keys.
        metrics: where it counts.
        spans: where each request becomes a span; closed when the application stops.
        features: the project's own.

    Raises:
        ConfigError: production mode without an API key.
    """
    metrics, log = metrics or Metrics(), logger()
    guard = Guard(settings, metrics, log)
    admission = Admission(
        settings.max_body_bytes, settings.body_timeout_seconds, settings.max_concurrent_requests, metrics
    )
    lifecycle = RequestLifecycle(guard, admission, metrics, log, spans)
    models = ModelManager(settings.serving_folder, settings.max_instances, metrics, log, features)
    service = Service(settings, lifecycle, models, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with opened_log(settings, metrics.log.backlog) as writer:
            metrics.log.follow(writer)
            service.batcher = Batcher(
                writer, metrics, settings.challenger_timeout_seconds, settings.log_failure_policy == "unlogged"
            )
            service.explainer = Explainer(admission.full)
            service.labeller = Labeller(settings.prediction_log, writer, metrics)
            await asyncio.to_thread(models.refresh)
            following = [asyncio.create_task(one.follow()) for one in (models, guard)]
            try:
                yield
            finally:
                for task in following:
                    task.cancel()
                service.explainer.close()
                service.batcher.close()
                service.labeller.close()
                if spans is not None:
                    await asyncio.to_thread(spans.close)

    app = FastAPI(
        title="Predictions",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # It would lead to whatever the header `Host` names, and lose a proxy's prefix.
        lifespan=lifespan,
        # FastAPI's own would miss the short way, and tell a collector what stands in a query.
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
    )
    app.state.service = service
    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_http_exception)
    lifecycle.know_routes(add_routes(app, service) | add_inference_routes(app, service))
    app.add_middleware(LifecycleMiddleware, lifecycle=lifecycle, root_path=settings.root_path)
    app.middleware_stack = app.build_middleware_stack()
    return app


def opened_log(settings: Settings, backlog: Backlog) -> Writer:
    """The log that a server writes, with a spool where the settings ask for one.

    Raises:
        ConfigError: it cannot be opened, or a spool is asked for where there is no database.
    """
    target, role, synchronous = settings.prediction_log, "serve", settings.log_synchronous
    if settings.log_failure_policy != "spool":
        allow_unavailable = settings.log_failure_policy == "unlogged"
        return WatchedWriter(backlog, target, role, synchronous=synchronous, allow_unavailable=allow_unavailable)
    if "://" not in target:
        raise ConfigError(
            "ML_LOG_FAILURE_POLICY: a spool is for a database; ML_PREDICTION_LOG is a folder: use 'refuse'"
        )
    spool = Spool(settings.log_spool_folder, role, synchronous, settings.log_spool_max_bytes)
    try:
        return WatchedWriter(backlog, target, role, synchronous=synchronous, spool=spool)
    except BaseException:
        spool.close()
        raise
