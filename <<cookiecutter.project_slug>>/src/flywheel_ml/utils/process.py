"""The current user, whether a process is alive, and what ended child processes cost."""

import getpass
import os
import resource
import sys


def get_user_name() -> str:
    """Return the user's name, or the user id if the system has no name, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def is_alive(pid: int) -> bool:
    """Whether this machine has a process with this id."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def get_children_cpu_seconds() -> float:
    """Return the processor seconds of this process's ended children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def get_children_peak_mb() -> float:
    """Return the most megabytes (10⁶ bytes) of memory that one of this process's ended children had."""
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6
