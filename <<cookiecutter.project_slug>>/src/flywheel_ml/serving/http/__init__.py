"""The HTTP layer below the routes: admission, the lifecycle of a request, middleware."""
