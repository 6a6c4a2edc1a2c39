"""The sockets of a server: one that holds the address, and one of each worker that listens there."""

import socket
import sys

from flywheel_ml.utils.errors import ServingError


def listen(host: str, port: int, several: bool = False) -> socket.socket:
    """Bind a socket to an address; port 0 takes a free one.

    With `several`, it reserves the address for processes that each listen on a socket of `bind_alongside`.

    Raises:
        ServingError: the address is taken or invalid.
    """
    # asyncio sends small answers at once only on sockets that name their protocol; others wait 40 ms for Nagle.
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        if several and sys.platform == "linux":
            if port == 0:  # The system's choice would be given back as soon as nobody listens there.
                with listener:
                    return listen(host, listener.getsockname()[1], several)
            _reserve(listener)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ServingError(
            f"cannot listen on {host}:{port}: {reason}; give another port, or 0 for a free one"
        ) from None
    return listener


def _reserve(listener: socket.socket) -> None:
    """Reserve the address for `bind_alongside`, even while no worker listens there.

    Of two servers that start at once both may bind, but only one can listen; once it has, no other can bind.
    """
    listener.listen()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.shutdown(socket.SHUT_RDWR)


def bind_alongside(listener: socket.socket) -> socket.socket:
    """Bind a socket of this process to the same address; the kernel distributes connections among such sockets.

    With one socket for all, the first process to wake takes most of the connections that arrive together. When this
    process dies, later connections go to the others. On systems other than Linux it is the same socket.

    Raises:
        ServingError: the address cannot be shared.
    """
    if sys.platform != "linux":
        return listener.dup()
    address, own = listener.getsockname(), socket.socket(listener.family, listener.type, listener.proto)
    try:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        own.bind(address)
    except OSError as error:
        own.close()
        raise ServingError(f"cannot listen on {address[0]}:{address[1]}: {error.strerror or error}") from None
    return own


def announce(listener: socket.socket) -> None:
    """Print the line with the server's address."""
    host, port = listener.getsockname()[:2]
    print(f"serving on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
