"""A PostgreSQL server for tests, if one is installed."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa


class PostgreSQL:
    """A PostgreSQL server; `url` contains a password."""

    def __init__(self, programs: Path, folder: Path, as_user: list[str]) -> None:
        self._programs = programs
        self._folder = folder
        self._as_user = as_user
        self._databases = 0
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql+psycopg://me:hush@127.0.0.1:{self.port}/postgres"
        self._call("initdb", "-A", "trust", "-U", "me", "-E", "UTF8", "--no-sync")

    def start(self) -> None:
        """Start the server, on the same port as before."""
        options = f"-p {self.port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._call("pg_ctl", "start", "-w", "-o", options, "-l", str(self._folder / "log"))

    def stop(self) -> None:
        """Stop the server as a crash does, without waiting for sessions."""
        self._call("pg_ctl", "stop", "-m", "immediate")

    def database(self) -> str:
        """Create an empty database; returns its URL."""
        self._databases += 1
        engine = sa.create_engine(self.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE empty{self._databases}"))
        engine.dispose()
        return f"{self.url.rpartition('/')[0]}/empty{self._databases}"

    def _call(self, program: str, *words: str) -> None:
        command = [*self._as_user, str(self._programs / program), "-D", str(self._folder / "data"), *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")


@contextmanager
def run_postgresql() -> Iterator[PostgreSQL]:
    """Start a new server; skips the test if PostgreSQL is not installed."""
    found = _programs()
    if found is None:
        pytest.skip("no PostgreSQL server here (initdb is neither on PATH nor in /usr/lib/postgresql)")
    # Not below pytest's folders: the user of the server cannot read those of root.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    as_user: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root.
        user = next((name for name in ("postgres", "nobody") if name in {each.pw_name for each in pwd.getpwall()}), "")
        # These folders may not be on a plain user's path.
        runuser = shutil.which("runuser", path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"]))
        if not user or runuser is None:
            folder.rmdir()
            pytest.skip("PostgreSQL does not run as root, and there is no other user")
        shutil.chown(folder, user)
        as_user = [runuser, "-u", user, "--"]
    try:
        server = PostgreSQL(found, folder, as_user)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _programs() -> Path | None:
    """Return the folder of initdb: on the path, or in Debian's location."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).parent
    return next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
