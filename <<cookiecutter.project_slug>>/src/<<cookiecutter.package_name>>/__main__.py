"""The command as a process. An interrupt while its libraries are still being loaded ends it without a traceback."""

import signal
from typing import NoReturn


def main() -> NoReturn:
    """Load the command line, then leave everything to it."""
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is not signal.SIG_IGN:  # As of what a script starts in the background.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli import main as run

    signal.signal(signal.SIGINT, interrupt)
    run()


if __name__ == "__main__":
    main()
