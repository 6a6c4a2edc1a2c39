"""Errors that callers see: RFC 9457 problem documents."""
