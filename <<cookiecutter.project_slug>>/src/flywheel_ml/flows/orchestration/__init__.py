"""Prefect: server, tasks, schedules."""
