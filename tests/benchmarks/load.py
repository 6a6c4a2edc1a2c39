"""A load generator in its own process: each client sends its next request when the last one is answered.

    python tests/benchmarks/load.py PORT CONNECTIONS SECONDS REQUEST

REQUEST is a file with the bytes of one HTTP request. Prints one JSON object: answers, seconds, milliseconds at the
50th and the 99th percentile, and how many answers did not have status 200.
"""

import asyncio
import json
import sys
import time
from pathlib import Path


class Client(asyncio.Protocol):
    """One connection that is never idle until `until` (`time.perf_counter`)."""

    def __init__(self, request: bytes, until: float, seconds: list[float], failures: list[bytes]) -> None:
        self._request = request
        self._until = until
        self._seconds = seconds
        self._failures = failures
        self._received = b""
        self._sent = 0.0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head = self._received.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._received.lower().find(b"content-length:", 0, head) + len(b"content-length:")
        if len(self._received) < head + 4 + int(self._received[at : self._received.find(b"\r\n", at)]):
            return
        now = time.perf_counter()
        self._seconds.append(now - self._sent)
        if not self._received.startswith(b"HTTP/1.1 200"):
            self._failures.append(self._received)
        self._received = b""
        if now < self._until:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        self.ended.set_result(None)


async def generate_load(port: int, connections: int, seconds: float, request: bytes) -> dict[str, float]:
    """Load a local server with N clients for a time; returns throughput, latencies and failures."""
    loop, taken, failures = asyncio.get_running_loop(), list[float](), list[bytes]()
    started = time.perf_counter()
    clients = [
        (await loop.create_connection(lambda: Client(request, started + seconds, taken, failures), "127.0.0.1", port))[
            1
        ]
        for _ in range(connections)
    ]
    await asyncio.gather(*(client.ended for client in clients))
    elapsed = time.perf_counter() - started
    taken.sort()
    return {
        "answers": len(taken),
        "seconds": elapsed,
        "per_second": len(taken) / elapsed,
        "p50_ms": taken[len(taken) // 2] * 1000,
        "p99_ms": taken[int(len(taken) * 0.99)] * 1000,
        "failures": len(failures),
    }


if __name__ == "__main__":
    port, connections, seconds, request = sys.argv[1:]
    print(
        json.dumps(asyncio.run(generate_load(int(port), int(connections), float(seconds), Path(request).read_bytes())))
    )
