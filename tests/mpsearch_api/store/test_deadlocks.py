"""Transactions that lock the same rows in different orders, on a database with row locks."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from mpsearch_api.settings import Settings
from mpsearch_api.store import Store, open_store
from mpsearch_api.store.contract import a_request

SLOW_DELETES = """
CREATE FUNCTION pause() RETURNS trigger AS
    $$ BEGIN PERFORM pg_sleep(0.5); RETURN OLD; END $$ LANGUAGE plpgsql;
CREATE TRIGGER slow BEFORE DELETE ON idempotency FOR EACH ROW EXECUTE FUNCTION pause();
"""


@pytest.fixture
def store(tmp_path: Path, postgres_url: str) -> Iterator[Store]:
    store = open_store(Settings(data_dir=tmp_path, database_url=postgres_url))
    yield store
    store.close()


def old_jobs_with_old_keys(store: Store) -> list[str]:
    """Make two ended jobs, whose keys are found in the other order, however they are looked for."""
    keys = sorted(
        (f"key {number}" for number in range(2)),
        key=lambda key: hashlib.sha256(key.encode()).hexdigest(),
        reverse=True,
    )
    made = [store.jobs.submit("ann", a_request(), idempotency_key=key)[0].id for key in keys]
    for job in made:
        store.jobs.cancel("ann", job)
        with store.database.write() as connection:
            connection.execute(text("UPDATE jobs SET finished = 1 WHERE id = :job"), {"job": job})
    for job in reversed(made):
        with store.database.write() as connection:
            connection.execute(
                text("UPDATE idempotency SET created = 1 WHERE job = :job"), {"job": job}
            )
    with store.database.write() as connection:
        connection.execute(text(SLOW_DELETES))
    return made


def run_at_once(*actions: Callable[[], object]) -> list[object]:
    """Run each in a thread; gives what they returned or raised."""
    found: list[object] = [None] * len(actions)

    def run(place: int) -> None:
        try:
            found[place] = actions[place]()
        except Exception as error:  # noqa: BLE001 (compared by the test)
            found[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_jobs_are_purged_while_their_tenant_submits(store: Store) -> None:
    made = old_jobs_with_old_keys(store)
    purged, submitted = run_at_once(
        lambda: store.jobs.purge(2.0),
        lambda: store.jobs.submit("ann", a_request(), idempotency_key="new")[1],
    )
    assert purged == made
    assert submitted is True
    assert store.jobs.counts() | {"queued": 0} == dict.fromkeys(store.jobs.counts(), 0)


def test_dispatchers_that_purge_at_once_share_the_work(store: Store) -> None:
    made = old_jobs_with_old_keys(store)
    purged = run_at_once(*[lambda: store.jobs.purge(2.0)] * 3)
    assert sorted(job for jobs in purged for job in jobs) == sorted(made)
