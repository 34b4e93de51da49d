"""The schema: every earlier version upgrades to the newest, whoever starts first."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import insert, inspect, text

from mpsearch.errors import DependencyError
from mpsearch_api.settings import Settings
from mpsearch_api.store import open_store
from mpsearch_api.store.contract import a_request
from mpsearch_api.store.database import Database
from mpsearch_api.store.migrate import revisions, upgrade
from mpsearch_api.store.tables import metadata

JOB = "job_01m819jkthcxdtfdfpys9j4pkq"
TOKEN_SHA256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
UNFINISHED = "upl_01m819jkthcxdtfdfpys9j4pkq"
FINISHED = "upl_01m819jkthcxdtfdfpys9j4pkr"
# What each version may add to what a database holds already, in the SQL of that time.
ROWS = {
    "0001": [
        f"""INSERT INTO jobs (id, tenant, status, attempt, deaths, created, last_event, request,
            state, artifacts) VALUES ('{JOB}', 'ann', 'queued', 2, 1, 1.8e9, 1, :request, '{{}}',
            '[]')""",
        """INSERT INTO events SELECT number, 1, 1.8e9, 'status', 0, '{"status":"queued"}'
            FROM jobs""",
        "INSERT INTO tenants VALUES ('ann', 3)",
        f"""INSERT INTO keys VALUES ('key_01m819jkthcxdtfdfpys9j4pkq', 'ann', '"old"',
            '{TOKEN_SHA256}', 'read write', 1.8e9, NULL, NULL)""",
        f"INSERT INTO profiles VALUES ('ann', '{'0' * 64}', '{'1' * 64}', 1.8e9)",
        f"""INSERT INTO uploads VALUES ('{UNFINISHED}', 'ann', 10, 4, NULL, NULL, 1.8e9, 1.8e9),
            ('{FINISHED}', 'ann', 10, 10, NULL, '{"1" * 64}', 1.8e9, 1.8e9)""",
    ],
    "0002": [
        f"INSERT INTO upload_parts VALUES ('{UNFINISHED}', 0, 4, '{'2' * 64}', 'place')",
        f"UPDATE uploads SET \"offset\" = 4 WHERE id = '{UNFINISHED}'",
        "INSERT INTO dispatchers VALUES ('machine-1', 1.8e9, NULL, 1)",
    ],
}


@pytest.fixture
def database(service_settings: Settings) -> Iterator[Database]:
    database = Database(service_settings.database)
    yield database
    database.close()


def test_there_is_an_example_of_every_version() -> None:
    assert list(ROWS) == revisions()


@pytest.mark.parametrize("start", [None, *revisions()])
def test_every_earlier_version_upgrades_to_the_tables_of_today(
    database: Database, start: str | None
) -> None:
    if start is not None:
        upgrade(database, start)
    upgrade(database)
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert context.get_current_revision() == revisions()[-1]
        assert compare_metadata(context, metadata) == []


@pytest.mark.parametrize("start", revisions())
def test_an_upgrade_keeps_what_was_there(
    database: Database, service_settings: Settings, start: str
) -> None:
    for version in revisions()[: revisions().index(start) + 1]:
        upgrade(database, version)
        with database.write() as connection:
            for statement in ROWS[version]:
                request = a_request("old").model_dump_json()
                values = {"request": request} if ":req" in statement else {}
                connection.execute(text(statement), values)
    store = open_store(service_settings)
    try:
        job = store.jobs.get("ann", JOB)
        assert job is not None
        assert (job.request, job.attempt) == (a_request("old"), 2)
        assert [event.status for event in store.jobs.events("ann", JOB)] == ["queued"]
        assert store.jobs.submit("ann", a_request())[1]
        assert [key.name for key in store.keys.list()] == ["old"]
        assert store.catalog.referenced_blobs() == {"1" * 64}
        assert store.uploads.get("ann", FINISHED).complete
        # The first version kept bytes where no later one looks: these are to be sent again.
        assert store.uploads.get("ann", UNFINISHED).offset == (0 if start == "0001" else 4)
    finally:
        store.close()


def test_a_database_of_a_newer_mpsearch_is_refused(
    database: Database, service_settings: Settings
) -> None:
    upgrade(database)
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DependencyError, match=r"9999.*upgrade mpsearch"):
        open_store(service_settings)


def test_a_migration_that_fails_leaves_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(*_args: object) -> None:
        raise RuntimeError("out of disk")

    with monkeypatch.context() as patched:
        patched.setattr("alembic.op.create_index", break_off)
        with pytest.raises(RuntimeError, match="out of disk"):
            upgrade(database)
    with database.read() as connection:
        assert inspect(connection).get_table_names() == []
    upgrade(database)
    with database.write() as connection:
        connection.execute(insert(metadata.tables["tenants"]).values(tenant="ann", turn=0))


@pytest.mark.slow
def test_processes_that_start_at_once_make_one_schema(service_settings: Settings) -> None:
    script = (
        "import sys\n"
        "from mpsearch_api.settings import Settings\n"
        "from mpsearch_api.store import open_store\n"
        "settings = Settings(data_dir=sys.argv[1], database_url=sys.argv[2])\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "store = open_store(settings)\n"
        "print(store.jobs.counts()['queued'], store.ready()); store.close()\n"
    )
    command = [sys.executable, "-c", script, service_settings.data_dir, service_settings.database]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60)[0] for process in processes]
    assert answers == ["0 None\n"] * 4
