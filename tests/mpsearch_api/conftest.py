"""A PostgreSQL server of the tests' own, and stores on both databases."""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from mpsearch_api.settings import Settings

PR_SET_PDEATHSIG = 1
START_SECONDS = 60.0


class PostgresServer:
    """A PostgreSQL cluster in a folder of its own, on a free port of 127.0.0.1.

    Runs as another user where the tests run as root, which `initdb` refuses. The server ends when
    the tests' process ends, however that ends.
    """

    def __init__(self, binaries: Path) -> None:
        self.binaries = binaries
        self.folder = Path(tempfile.mkdtemp(prefix="mpsearch-postgres-"))
        self.data = self.folder / "data"
        self.port = _free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.user = _unprivileged_user()
        if self.user is not None:
            os.chown(self.folder, self.user.pw_uid, self.user.pw_gid)
        command = [self.binaries / "initdb", "-D", self.data, "-U", "mpsearch", "-A", "trust"]
        command += ["-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            timeout=120,
            cwd=self.folder,
            **self._as_user(),
        )

    def start(self) -> None:
        """Start the server and wait until it answers."""
        assert self.process is None
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "32MB",
            # Survives its own processes being killed, not a power cut; other tests share the disk.
            "fsync": "off",
        }
        command = [str(self.binaries / "postgres"), "-D", str(self.data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                preexec_fn=_end_with_parent,
                **self._as_user(),
            )
        self._wait()

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT breaks connections off; SIGQUIT leaves recovery to the start."""
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(60)
        self.process = None

    def close(self) -> None:
        """Stop the server and remove its folder."""
        if self.process is not None:
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str) -> str:
        """Give the SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://mpsearch@127.0.0.1:{self.port}/{database}"

    def create_database(self) -> str:
        """Make a new database and give its URL."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        run_outside_transactions(self.url("postgres"), f"CREATE DATABASE {name}")
        return self.url(name)

    def _as_user(self) -> dict:
        if self.user is None:
            return {}
        return {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                run_outside_transactions(self.url("postgres"), "SELECT 1")
            except sqlalchemy.exc.OperationalError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    log = (self.folder / "server.log").read_text()[-2000:]
                    raise RuntimeError(f"PostgreSQL did not start:\n{log}") from None
                time.sleep(0.05)
            else:
                return


def run_outside_transactions(url: str, *statements: str) -> None:
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            for statement in statements:
                connection.execute(sqlalchemy.text(statement))
    finally:
        engine.dispose()


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _unprivileged_user() -> pwd.struct_passwd | None:
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres or nobody")


def _postgres_binaries() -> Path:
    """Find the folder with both programs; a distribution keeps them off PATH."""
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which("initdb")
    if found is not None:
        candidates.insert(0, Path(found).resolve().parent)
    for folder in candidates:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    pytest.skip("no PostgreSQL: neither initdb on PATH nor /usr/lib/postgresql/*/bin")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A running server of the session's own; tests that stop it start it again."""
    server = PostgresServer(_postgres_binaries())
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def postgres_database(request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of a database: on MPSEARCH_TEST_DATABASE_URL's server, or on one of our own."""
    given = os.environ.get("MPSEARCH_TEST_DATABASE_URL")
    if given is None:
        yield request.getfixturevalue("postgres_server").create_database()
        return
    name = f"test_{uuid.uuid4().hex[:12]}"
    run_outside_transactions(given, f"CREATE DATABASE {name}")
    url = sqlalchemy.make_url(given).set(database=name)
    try:
        yield url.render_as_string(hide_password=False)
    finally:
        run_outside_transactions(given, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def postgres_url(postgres_database: str) -> str:
    """URL of an empty database; a new one for each test would take seconds on a busy disk."""
    run_outside_transactions(
        postgres_database,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        "DROP SCHEMA public CASCADE",
        "CREATE SCHEMA public",
    )
    return postgres_database


@pytest.fixture(params=["sqlite", "postgresql"])
def service_settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of a service with an empty database, once per database."""
    if request.param == "sqlite":
        return Settings(data_dir=tmp_path / "data")
    return Settings(
        data_dir=tmp_path / "data", database_url=request.getfixturevalue("postgres_url")
    )
