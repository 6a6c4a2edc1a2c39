"""Errors for callers: RFC 9457 problem documents."""
