"""Retention: statistics of a log, and jobs that prune, export and erase it while servers run.

A job is a process of its own. It reads the log in short transactions, and asks the owner of each SQLite file to delete
rows (requests.py). So one process writes a file, and a job that is killed anywhere can be run again.
"""
