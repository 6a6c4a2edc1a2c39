"""The errors that this package raises on purpose.

A message names the thing, its value and the remedy; the command line prints it as one line.
"""


class ProjectError(Exception):
    """Base of all errors that a user can act on."""

    exit_code = 1
    transient = False
    """Whether a later retry may succeed."""


class ConfigError(ProjectError):
    """A parameter, setting or contract is invalid."""

    exit_code = 2


class DataError(ProjectError):
    """A table cannot be read, or its content is not what is expected."""


class ContractViolation(ProjectError):
    """Rows of a readable table break the contract."""


class IntegrityError(ProjectError):
    """A file differs from what was written: a corrupted input or a tampered bundle."""


class GateRefusal(ProjectError):
    """One or more promotion gates rejected a model."""


class PromotionConflict(ProjectError):
    """A promotion expected a different champion than the current one."""


class ServingError(ProjectError):
    """A server or a serving folder cannot fulfil the request."""


class Busy(ProjectError):
    """Another process holds a lock that this one needs."""


class NotExplainable(ProjectError):
    """A prediction cannot be explained: no model made it, or the bundle has no background rows."""
