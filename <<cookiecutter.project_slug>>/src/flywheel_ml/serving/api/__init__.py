"""The routes of the API, and its OpenAPI document."""
