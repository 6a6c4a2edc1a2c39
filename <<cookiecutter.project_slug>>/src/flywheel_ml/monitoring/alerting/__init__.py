"""Alerts: rules find conditions, the outbox keeps them, and sinks are notified once when each begins and ends."""
