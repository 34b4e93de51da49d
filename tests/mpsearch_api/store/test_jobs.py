"""The contract of job stores, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mpsearch_api.settings import Settings
from mpsearch_api.store import Store, open_store
from mpsearch_api.store.contract import JobStoreContract, SetClock
from mpsearch_api.store.port import JobStore


class TestSqlJobs(JobStoreContract):
    @pytest.fixture
    def clock(self) -> SetClock:
        return SetClock()

    @pytest.fixture
    def store(self, service_settings: Settings, clock: SetClock) -> Iterator[Store]:
        store = open_store(service_settings, clock=clock)
        yield store
        store.close()

    @pytest.fixture
    def jobs(self, store: Store) -> JobStore:
        return store.jobs
