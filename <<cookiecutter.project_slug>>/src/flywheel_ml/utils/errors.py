"""Everything this package raises on purpose.

A message names the thing, its value and the remedy; the command line prints it as one line.
"""


class ProjectError(Exception):
    """Root of all errors that a person can act on."""

    exit_code = 1
    transient = False
    """Whether trying again later may help."""


class ConfigError(ProjectError):
    """A parameter, setting or contract that cannot be used as it is written."""

    exit_code = 2


class DataError(ProjectError):
    """A table that cannot be read, or that is not what its name says."""


class ContractViolation(ProjectError):
    """A readable table whose rows break the contract."""


class IntegrityError(ProjectError):
    """Bytes that are not the bytes that were written: a corrupted input or a tampered bundle."""


class GateRefusal(ProjectError):
    """A model that one or more promotion gates turned down."""


class PromotionConflict(ProjectError):
    """A promotion that expected another champion than the one it found."""


class ServingError(ProjectError):
    """A server or a serving folder that cannot do what was asked."""


class Busy(ProjectError):
    """Another process holds what this one needs."""


class NotExplainable(ProjectError):
    """A prediction that nothing more can be said about: no model made it, or there is nothing to compare it with."""
