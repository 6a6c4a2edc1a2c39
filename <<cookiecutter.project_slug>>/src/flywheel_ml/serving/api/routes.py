"""The routes of the server's own API, and the state that they share."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fastapi import APIRouter, Depends, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from flywheel_ml.core.serving_folder import Challenger, Shadow
from flywheel_ml.core.settings import Settings
from flywheel_ml.serving.api.explaining import Explainer
from flywheel_ml.serving.api.feedback import Labeller
from flywheel_ml.serving.api.openapi import (
    ANY_ERRORS,
    KEYS,
    OPEN_ERRORS,
    UNAVAILABLE,
    build_openapi,
    describe_problems,
    find_asset,
)
from flywheel_ml.serving.codecs import arrow
from flywheel_ml.serving.codecs.arrow import ARROW
from flywheel_ml.serving.codecs.invocations import CSV, InvocationsCodec
from flywheel_ml.serving.codecs.native import NATIVE
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.experiments.assignment import RoutingHints, parse_routing_hints
from flywheel_ml.serving.http.admission import JSON, RETRY, parse_media_type
from flywheel_ml.serving.http.lifecycle import RequestLifecycle
from flywheel_ml.serving.models.manager import ModelManager
from flywheel_ml.serving.models.served_model import Deployment
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.serving.prediction.batcher import UNLOGGED_HEADER, Batcher, UnloggedResponse
from flywheel_ml.serving.prediction.requests import Codec, PredictRequest
from flywheel_ml.serving.schema.documents import Health, ModelInfo
from flywheel_ml.serving.schema.request_schema import Schema


class Service:
    """The state shared by routes; `batcher`, `explainer` and `labeller` are set when the app starts."""

    batcher: Batcher
    explainer: Explainer
    labeller: Labeller

    def __init__(self, settings: Settings, lifecycle: RequestLifecycle, models: ModelManager, metrics: Metrics) -> None:
        self.settings = settings
        self.lifecycle = lifecycle
        self.models = models
        self.metrics = metrics
        self.draining = False
        self._described: tuple[Schema | None, dict[str, Any]] | None = None

    @property
    def deployment(self) -> Deployment:
        """The models in service.

        Raises:
            Problem: 503 if there is no model.
        """
        if self.models.deployment is None:
            raise Problem(503, "no-model", "no model is in service; see the server's log for the reason", RETRY)
        return self.models.deployment

    def require_ready(self) -> None:
        """Raise 503 unless this server accepts traffic."""
        if self.draining:
            raise Problem(503, "draining", "this server is shutting down", RETRY)
        assert self.deployment
        if self.batcher.outage_problem is not None:
            raise self.batcher.outage_problem

    def parse_hints(self, headers: Mapping[bytes, bytes]) -> RoutingHints:
        """Parse the headers that influence which model answers."""
        return parse_routing_hints(headers, self.settings.allow_variant_header)

    def build_description(self, app: FastAPI) -> dict[str, Any]:
        """Return the OpenAPI document, built once per model."""
        schema = self.models.deployment.model.schema if self.models.deployment else None
        if self._described is None or self._described[0] is not schema:
            self._described = (schema, build_openapi(app, schema, self.settings.root_path))
        return self._described[1]


def add_routes(app: FastAPI, service: Service) -> frozenset[str]:
    """Add the routes to the app and return their paths."""
    # Routes with bodies bypass FastAPI's validation, because their models change with the bundle.
    takers = {
        "/predict": BodyRoute(service, _predict, (JSON, ARROW)),
        "/explain": BodyRoute(service, _explain),
        "/feedback": BodyRoute(service, _feedback),
        "/invocations": BodyRoute(service, _invocations, (JSON, CSV)),
    }
    for path, route in takers.items():
        app.router.routes.append(Route(path, route, methods=["POST"]))
    app.include_router(_build_status_router(service))
    app.include_router(_build_developer_router(app, service))
    others = {"/model", "/healthz", "/readyz", "/ping", "/metrics", "/docs", "/openapi.json"}
    return frozenset(others | takers.keys())


class Reply(NamedTuple):
    """A successful response."""

    content: bytes
    kind: str = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


Handler = Callable[["Service", Deployment, Scope, bytes], Awaitable[Reply]]


class BodyRoute:
    """A plain ASGI route, because a framework's overhead per request costs more than a prediction.

    Args:
        service: the shared state.
        handler: returns the response to a body.
        media_types: accepted media types of the body.
    """

    def __init__(self, service: Service, handler: Handler, media_types: Sequence[str] = (JSON,)) -> None:
        self._service = service
        self._handler = handler
        self._media_types = media_types

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Authorise, admit and answer one request."""
        service, lifecycle = self._service, self._service.lifecycle
        lifecycle.authorise(scope["headers"], scope["path"])
        deployment = service.deployment
        body = await lifecycle.admission.read_body(scope, receive, self._media_types)
        with lifecycle.admit():
            content, kind, more = await self._handler(service, deployment, scope, body)
        headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(content)), *more]
        if isinstance(content, UnloggedResponse):
            headers.append(UNLOGGED_HEADER)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


def build_predict_request(service: Service, scope: Scope, body: bytes, codec: Codec) -> PredictRequest:
    """Build a prediction request from an ASGI scope and its body."""
    hints, context = service.parse_hints(dict(scope["headers"])), scope["state"]["context"]
    return PredictRequest(body, codec, time.perf_counter(), hints, context)


async def _predict(service: Service, deployment: Deployment, scope: Scope, body: bytes) -> Reply:
    request = build_predict_request(service, scope, body, NATIVE)
    if parse_media_type(scope) != ARROW:
        return Reply(await service.batcher.predict(deployment, request))
    wants_arrow = ARROW.encode() in dict(scope["headers"]).get(b"accept", b"").lower()
    limit = service.settings.max_body_bytes
    content = await arrow.predict(service.batcher, deployment, request, wants_arrow, limit)
    return Reply(content, ARROW if wants_arrow else JSON)


async def _explain(service: Service, deployment: Deployment, _: Scope, body: bytes) -> Reply:
    return Reply(await service.explainer.explain(deployment.model, body))


async def _feedback(service: Service, deployment: Deployment, scope: Scope, body: bytes) -> Reply:
    labels = deployment.model.schema.parse_labels(body)
    accepted = await service.labeller.accept(labels, scope["state"]["context"])
    service.metrics.predictions.labels.inc(accepted)
    return Reply(to_json({"accepted": accepted}))


async def _invocations(service: Service, deployment: Deployment, scope: Scope, body: bytes) -> Reply:
    request = build_predict_request(service, scope, body, InvocationsCodec(parse_media_type(scope)))
    return Reply(await service.batcher.predict(deployment, request))


def _build_status_router(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get(
        "/model",
        summary="The model that answers now",
        responses=describe_problems(ANY_ERRORS | UNAVAILABLE),
        dependencies=[*KEYS, Depends(service.lifecycle.guard.require)],
    )
    async def model() -> ModelInfo:
        return _build_model_info(service.deployment, service.models)

    @router.get("/healthz", summary="Whether the process lives", responses=describe_problems(OPEN_ERRORS))
    async def healthz() -> Health:
        return Health(status="alive")

    found = describe_problems(OPEN_ERRORS | UNAVAILABLE)

    @router.get("/readyz", summary="Whether traffic may be sent here", responses=found)
    async def readyz() -> Health:
        service.require_ready()
        return Health(status="ready")

    as_asked = "The same as /readyz, for MLflow and SageMaker"
    # One route with both methods, so that a 405 lists both; the other routes only document them.
    router.add_api_route("/ping", readyz, methods=["GET", "POST"], include_in_schema=False)
    for method in ("GET", "POST"):
        router.add_api_route("/ping", readyz, methods=[method], summary=as_asked, responses=found)

    return router


def _build_developer_router(app: FastAPI, service: Service) -> APIRouter:
    router = APIRouter(dependencies=[Depends(service.lifecycle.guard.require_in_production)])
    is_open = service.settings.environment != "production"

    @router.get(
        "/metrics",
        summary="Counts and latencies of all workers, as Prometheus reads them",
        responses=describe_problems(OPEN_ERRORS if is_open else ANY_ERRORS),
        response_class=PlainTextResponse,
        dependencies=[] if is_open else KEYS,
    )
    async def metrics() -> Response:
        service.metrics.publish()
        text = await asyncio.to_thread(generate_latest, service.metrics)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    @router.get("/openapi.json", include_in_schema=False)
    def openapi() -> JSONResponse:
        return JSONResponse(service.build_description(app))

    @router.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        # Relative URLs lead to this server behind any proxy prefix.
        here = "../" if request.scope["raw_path"].endswith(b"/") else ""
        return get_swagger_ui_html(
            openapi_url=f"{here}openapi.json",
            title=app.title,
            swagger_js_url=f"{here}docs/swagger-ui-bundle.js",
            swagger_css_url=f"{here}docs/swagger-ui.css",
            swagger_favicon_url=f"{here}docs/favicon.png",
        )

    @router.get("/docs/{name}", include_in_schema=False)
    async def docs_file(name: str) -> FileResponse:
        if (path := find_asset(name)) is None:
            raise Problem(404, "not-found", f"the docs have no file '{name[:100]}'; see /docs")
        return FileResponse(path)

    return router


def _build_model_info(deployment: Deployment, models: ModelManager) -> ModelInfo:
    model, routing, rejection = deployment.model, deployment.routing, models.last_rejection
    manifest = model.bundle.manifest
    return ModelInfo.model_validate(
        {
            "name": manifest.name,
            "version": model.ref.version,
            "digest": model.ref.digest,
            "variant": model.variant,
            "degraded": model.degraded,
            "task": manifest.task,
            "target": manifest.target,
            "classes": list(manifest.classes),
            "threshold": manifest.threshold,
            "estimator": manifest.estimator,
            "metrics": manifest.metrics,
            "loaded_at": model.loaded_at,
            "champion": routing.champion and routing.champion.model_dump(),
            "previous": routing.previous and routing.previous.model_dump(),
            "challengers": (tried := [_describe_experiment(one, deployment, models) for one in routing.challengers]),
            "challenger": tried[0] if tried else None,
            "shadow": routing.shadow and _describe_experiment(routing.shadow, deployment, models),
            "rollout_reason": routing.reason,
            "rejected": rejection and {"version": rejection.version, "reason": rejection.reason, "at": rejection.at},
        }
    )


def _describe_experiment(spec: Challenger | Shadow, deployment: Deployment, models: ModelManager) -> dict[str, Any]:
    paused_at, reason = None, None
    if (running := deployment.find_experiment(spec)) is None:
        rejected = (one.reason for one in models.rejections if one.version == spec.ref.version)
        reason = next(rejected, "experiments run only alongside the champion, which is not in service")
    elif running.paused:
        paused_at, reason = running.paused
    return {
        **spec.ref.model_dump(),
        "share": spec.share if isinstance(spec, Challenger) else None,
        "since": spec.since,
        "state": "rejected" if running is None else "paused" if running.paused else "running",
        "paused_at": paused_at,
        "reason": reason,
    }
