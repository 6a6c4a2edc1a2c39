"""HTTP below the routes: connections, admission, middleware, problem documents."""
