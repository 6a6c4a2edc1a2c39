"""SIGHUP asks a server to reload, unless it comes because the server's terminal was closed."""

import os
import signal


class ReloadSignal:
    """Notes each SIGHUP from now on; one that a closed terminal sends becomes SIGTERM, as it ends other programs."""

    def __init__(self) -> None:
        self._terminals = [descriptor for descriptor in range(3) if os.isatty(descriptor)]
        self._is_waiting = False
        signal.signal(signal.SIGHUP, self._note)

    def take(self) -> bool:
        """Whether a reload was asked for since the last call; several requests count as one."""
        is_waiting, self._is_waiting = self._is_waiting, False
        return is_waiting

    def _note(self, *_: object) -> None:
        if not all(os.isatty(descriptor) for descriptor in self._terminals):
            signal.raise_signal(signal.SIGTERM)
        else:
            self._is_waiting = True
