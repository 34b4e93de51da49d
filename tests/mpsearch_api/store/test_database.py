"""The database behind the stores: durability, errors, plans."""

from __future__ import annotations

import sqlite3

import pytest
from sqlalchemy import select, text

from mpsearch.errors import DependencyError, InputError
from mpsearch_api.faults import UnavailableError
from mpsearch_api.settings import Settings
from mpsearch_api.store import Store, open_store
from mpsearch_api.store import database as database_module
from mpsearch_api.store.contract import a_request
from mpsearch_api.store.tables import jobs, tenants


@pytest.fixture
def sqlite_settings(tmp_path) -> Settings:
    return Settings(data_dir=tmp_path)


@pytest.fixture
def sqlite_store(sqlite_settings: Settings):
    store = open_store(sqlite_settings)
    yield store
    store.close()


def test_sqlite_waits_for_the_disk_at_every_commit(sqlite_store: Store) -> None:
    for block in (sqlite_store.database.read, sqlite_store.database.write):
        with block() as connection:
            found = {
                name: connection.execute(text(f"PRAGMA {name}")).scalar_one()
                for name in ("synchronous", "journal_mode", "foreign_keys", "busy_timeout")
            }
        # FULL is 2; of journal modes, only a log is written ahead.
        assert found == {
            "synchronous": 2,
            "journal_mode": "wal",
            "foreign_keys": 1,
            "busy_timeout": 30_000,
        }


def test_other_users_of_the_machine_cannot_look_into_a_new_data_folder(tmp_path) -> None:
    folder = tmp_path / "above" / "data"
    open_store(Settings(data_dir=folder)).close()
    assert folder.stat().st_mode & 0o077 == 0


def test_a_transaction_that_fails_writes_nothing_and_lets_the_next_through(store: Store) -> None:
    def fail() -> None:
        with store.database.write() as connection:
            connection.execute(tenants.insert().values(tenant="ann", turn=1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with store.database.write() as connection:
        assert connection.execute(select(tenants)).all() == []
        connection.execute(tenants.insert().values(tenant="ann", turn=1))


def test_a_database_that_stays_locked_is_unavailable(
    sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(sqlite_settings).close()
    monkeypatch.setattr(database_module, "WAIT_SECONDS", 0.2)
    store = open_store(sqlite_settings)
    holder = sqlite3.connect(sqlite_settings.data_dir / "mpsearch.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError, match="locked"):
        store.jobs.submit("ann", a_request())
    assert store.ready() is None
    holder.execute("ROLLBACK")
    assert store.jobs.submit("ann", a_request())[1]
    store.close()


@pytest.mark.parametrize("url", ["mysql://x/y", "sqlite://", "sqlite:///:memory:"])
def test_other_databases_are_refused(tmp_path, url: str) -> None:
    with pytest.raises(InputError, match="sqlite:///FILE"):
        open_store(Settings(data_dir=tmp_path, database_url=url))


def test_a_sqlite_that_is_too_old_is_refused(sqlite_settings: Settings, monkeypatch) -> None:
    monkeypatch.setattr("sqlite3.sqlite_version_info", (3, 34, 1))
    with pytest.raises(DependencyError, match=r"3\.35"):
        open_store(sqlite_settings)


def test_a_refused_url_does_not_show_its_password(tmp_path) -> None:
    with pytest.raises(InputError) as caught:
        open_store(Settings(data_dir=tmp_path, database_url="mysql://me:secret@x/y"))
    assert "secret" not in str(caught.value)


def test_postgres_tells_the_time_for_all(postgres_url: str, tmp_path, monkeypatch) -> None:
    store = open_store(Settings(data_dir=tmp_path, database_url=postgres_url))
    monkeypatch.setattr("time.time", lambda: 0.0)
    job, _ = store.jobs.submit("ann", a_request())
    assert job.created.year >= 2024
    store.close()


PLANS = {
    "a job by its name": select(jobs).where(jobs.c.id == "job_x", jobs.c.tenant == "ann"),
    "the oldest queued of a tenant": select(jobs)
    .where(jobs.c.status == "queued", jobs.c.tenant == "ann")
    .order_by(jobs.c.number)
    .limit(1),
    "leases that ran out": select(jobs.c.number).where(jobs.c.lease_until <= 5.0),
    "a page of a tenant": select(jobs)
    .where(jobs.c.tenant == "ann", jobs.c.number < 500)
    .order_by(jobs.c.number.desc())
    .limit(51),
    "what ended long ago": select(jobs.c.id).where(jobs.c.finished < 5.0),
}


@pytest.mark.parametrize("what", list(PLANS))
def test_queries_asked_often_read_no_whole_table_and_sort_nothing(
    sqlite_store: Store, what: str
) -> None:
    with sqlite_store.database.read() as connection:
        statement = PLANS[what].compile(connection, compile_kwargs={"literal_binds": True})
        plan = connection.execute(text(f"EXPLAIN QUERY PLAN {statement}")).all()
    steps = [row.detail for row in plan]
    assert all(step.startswith("SEARCH jobs USING") for step in steps), steps
