"""The routes of the Open Inference Protocol, version 2."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Path
from starlette.routing import Route
from starlette.types import Scope

from flywheel_ml.serving.api.openapi import (
    ANY_ERRORS,
    KEYS,
    OPEN_ERRORS,
    UNAVAILABLE,
    UNKNOWN_MODEL,
    VERSION,
    describe_problems,
)
from flywheel_ml.serving.api.routes import BodyRoute, Reply, Service, build_predict_request
from flywheel_ml.serving.codecs.inference_documents import (
    BINARY,
    EXTENSIONS,
    MODEL,
    VERSIONED,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
)
from flywheel_ml.serving.codecs.inference_v2 import InferenceCodec, build_metadata, parse_header_length, require_model
from flywheel_ml.serving.http.admission import JSON
from flywheel_ml.serving.models.served_model import Deployment, ServedModel

Name = Annotated[str, Path(description="the model's name, as GET /model returns it")]
Version = Annotated[str, Path(description="the version in service")]


def add_inference_routes(app: FastAPI, service: Service) -> frozenset[str]:
    """Add these routes to the app and return their paths."""
    infer = BodyRoute(service, _infer, (JSON, BINARY))
    for path in (MODEL, VERSIONED):
        app.router.routes.append(Route(f"{path}/infer", infer, methods=["POST"]))
    app.include_router(_build_health_router(service))
    app.include_router(_build_model_router(service))
    own = {f"{path}{ending}" for path in (MODEL, VERSIONED) for ending in ("", "/ready", "/infer")}
    return frozenset({"/v2", "/v2/health/live", "/v2/health/ready", *own})


async def _infer(service: Service, deployment: Deployment, scope: Scope, body: bytes) -> Reply:
    require_model(deployment.model, **scope["path_params"])
    codec = InferenceCodec(parse_header_length(dict(scope["headers"])))
    content = await service.batcher.predict(deployment, build_predict_request(service, scope, body, codec))
    if codec.response_header_length is None:
        return Reply(content)
    return Reply(content, BINARY, ((b"inference-header-content-length", b"%d" % codec.response_header_length),))


def _build_health_router(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/v2/health/live", summary="Whether the process lives", responses=describe_problems(OPEN_ERRORS))
    async def server_live() -> ServerLive:
        return ServerLive(live=True)

    found = describe_problems(OPEN_ERRORS | UNAVAILABLE)

    @router.get("/v2/health/ready", summary="Whether traffic may be sent here", responses=found)
    async def server_ready() -> ServerReady:
        service.require_ready()
        return ServerReady(ready=True)

    return router


def _build_model_router(service: Service) -> APIRouter:
    router = APIRouter(
        responses=describe_problems(ANY_ERRORS), dependencies=[*KEYS, Depends(service.lifecycle.guard.require)]
    )
    found = describe_problems(UNKNOWN_MODEL | UNAVAILABLE)
    described: dict[str, Any] = {"responses": found, "response_model_exclude_none": True}

    @router.get("/v2", summary="The server's name and its extensions")
    async def server_metadata() -> ServerMetadata:
        return ServerMetadata(name="predictions", version=VERSION, extensions=list(EXTENSIONS))

    def required(name: str, version: str | None = None) -> ServedModel:
        model = service.deployment.model
        require_model(model, name, version)
        return model

    @router.get(MODEL, summary="The model's inputs and outputs, as tensors", **described)
    async def model_metadata(name: Name) -> ModelMetadata:
        return build_metadata(required(name))

    @router.get(VERSIONED, summary="The same, if this version is in service", **described)
    async def version_metadata(name: Name, version: Version) -> ModelMetadata:
        return build_metadata(required(name, version))

    @router.get(f"{MODEL}/ready", summary="Whether the model can answer", responses=found)
    async def model_ready(name: Name) -> ModelReady:
        required(name)
        return ModelReady(name=name, ready=True)

    @router.get(f"{VERSIONED}/ready", summary="Whether this version can answer", responses=found)
    async def version_ready(name: Name, version: Version) -> ModelReady:
        required(name, version)
        return ModelReady(name=name, ready=True)

    return router
