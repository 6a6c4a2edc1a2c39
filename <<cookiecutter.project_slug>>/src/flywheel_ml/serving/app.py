"""The application factory: creates the components of the server and connects them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.routing import Route

from flywheel_ml.core.features import Feature
from flywheel_ml.core.settings import Settings
from flywheel_ml.prediction_log import Spool, Writer
from flywheel_ml.serving.api.explaining import Explainer
from flywheel_ml.serving.api.feedback import Labeller
from flywheel_ml.serving.api.inference_routes import add_inference_routes
from flywheel_ml.serving.api.log_jobs import LogJobs, add_log_routes
from flywheel_ml.serving.api.routes import Service, add_routes
from flywheel_ml.serving.auth.guard import Guard
from flywheel_ml.serving.errors.problems import Problem, on_http_exception, on_problem
from flywheel_ml.serving.http.admission import Admission
from flywheel_ml.serving.http.lifecycle import RequestLifecycle
from flywheel_ml.serving.http.middleware import LifecycleMiddleware
from flywheel_ml.serving.models.manager import ModelManager
from flywheel_ml.serving.observability.backlog import Backlog
from flywheel_ml.serving.observability.instrumented_writer import InstrumentedWriter
from flywheel_ml.serving.observability.logs import logger
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.serving.observability.textfile import TextfileReader
from flywheel_ml.serving.observability.tracing import Spans
from flywheel_ml.serving.prediction.batcher import Batcher
from flywheel_ml.utils.errors import ConfigError

__all__ = ["Metrics", "Spans", "create_app", "open_log"]


def create_app(
    settings: Settings,
    metrics: Metrics | None = None,
    spans: Spans | None = None,
    features: Sequence[Feature] = (),
) -> FastAPI:
    """Create the application; it opens no file or connection before it starts.

    Args:
        settings: paths, limits and keys.
        metrics: counts requests and predictions; created if not given.
        spans: creates a span for each request; closed when the application stops.
        features: the project's features.

    Raises:
        ConfigError: production mode without an API key.
    """
    metrics, log = metrics or Metrics(), logger()
    metrics.textfiles = TextfileReader(settings.serving_folder)
    metrics.http.in_flight_limit.set(settings.max_concurrent_requests)
    guard = Guard(settings, metrics, log)
    admission = Admission(
        settings.max_body_bytes, settings.body_timeout_seconds, settings.max_concurrent_requests, metrics
    )
    lifecycle = RequestLifecycle(guard, admission, metrics, log, spans)
    models = ModelManager(settings.serving_folder, settings.max_instances, metrics, log, features)
    service = Service(settings, lifecycle, models, metrics)
    log_jobs = LogJobs(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with open_log(settings, metrics.log.backlog) as writer:
            metrics.log.set_log(writer)
            service.batcher = Batcher(
                writer, metrics, settings.challenger_timeout_seconds, settings.log_failure_policy == "unlogged"
            )
            service.explainer = Explainer(admission.build_overload_problem)
            service.labeller = Labeller(settings.prediction_log, writer, metrics)
            own_routes = {route.path for route in app.router.routes[n_library_routes:] if isinstance(route, Route)}
            lifecycle.set_routes(library_paths | own_routes)
            await asyncio.to_thread(models.refresh)
            await asyncio.to_thread(log_jobs.resume)
            pollers = [asyncio.create_task(source.poll()) for source in (models, guard)]
            try:
                yield
            finally:
                for task in pollers:
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
        redirect_slashes=False,  # A redirect would use the `Host` header and lose a proxy's prefix.
        lifespan=lifespan,
        # FastAPI's telemetry would miss the fast path, and export the query strings of URLs.
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
    )
    app.state.service = service
    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_http_exception)
    library_paths = add_routes(app, service) | add_inference_routes(app, service)
    library_paths |= add_log_routes(app, lifecycle, log_jobs)
    n_library_routes = len(app.router.routes)
    app.add_middleware(LifecycleMiddleware, lifecycle=lifecycle, root_path=settings.root_path)
    app.middleware_stack = app.build_middleware_stack()
    return app


def open_log(settings: Settings, backlog: Backlog) -> Writer:
    """Open the prediction log for writing, with a spool if the settings ask for one.

    Raises:
        ConfigError: the log cannot be opened, or the settings ask for a spool without a database.
    """
    target, role, synchronous = settings.prediction_log, "serve", settings.log_synchronous
    if settings.log_failure_policy != "spool":
        allow_unavailable = settings.log_failure_policy == "unlogged"
        return InstrumentedWriter(backlog, target, role, synchronous=synchronous, allow_unavailable=allow_unavailable)
    if "://" not in target:
        raise ConfigError(
            "ML_LOG_FAILURE_POLICY: 'spool' needs a database, but ML_PREDICTION_LOG is a folder; use 'refuse'"
        )
    spool = Spool(settings.log_spool_folder, role, synchronous, settings.log_spool_max_bytes)
    try:
        return InstrumentedWriter(backlog, target, role, synchronous=synchronous, spool=spool)
    except BaseException:
        spool.close()
        raise
