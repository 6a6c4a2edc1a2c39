"""ASGI middleware around every route: begins and finishes each request, and handles uncaught errors."""

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flywheel_ml.serving.http.lifecycle import CLIENT_LEFT, RequestLifecycle


class LifecycleMiddleware:
    """Takes ASGI requests through the lifecycle.

    Args:
        app: the wrapped application.
        lifecycle: of every request.
        root_path: prefix that a proxy may leave in paths.
    """

    def __init__(self, app: ASGIApp, lifecycle: RequestLifecycle, root_path: str = "") -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._prefix = f"{root_path}/"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, path = scope["method"], self._route_path(scope["path"])
        if method == "HEAD" or path != scope["path"]:
            scope = {**scope, "method": "GET" if method == "HEAD" else method, "path": path}
        exchange = self._lifecycle.begin(scope["headers"], method, path)
        request_id = exchange.context.request_id
        scope.setdefault("state", {}).update(request_id=request_id, context=exchange.context)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            elif method == "HEAD":
                message["body"] = b""
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = CLIENT_LEFT
        except Exception as error:
            problem = self._lifecycle.log_unexpected(error, exchange.context)
            if not status:
                await problem.to_response(path, request_id)(scope, receive, send_with_id)
        finally:
            self._lifecycle.finish(exchange, status)

    def _route_path(self, path: str) -> str:
        """Return the path without a proxy's prefix and without a trailing slash."""
        if len(self._prefix) > 1 and path.startswith(self._prefix):
            path = path[len(self._prefix) - 1 :]
        return path[:-1] if path.endswith("/") and len(path) > 1 else path
