"""Stores on both databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mpsearch_api.blobs import open_blobs
from mpsearch_api.blobs.port import BlobStore
from mpsearch_api.settings import Settings
from mpsearch_api.store import Store, open_store
from mpsearch_api.store.contract import SetClock


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def clocked_store(service_settings: Settings, clock: SetClock) -> Iterator[Store]:
    """A store whose time the test moves."""
    store = open_store(service_settings, clock=clock)
    yield store
    store.close()


@pytest.fixture
def store(service_settings: Settings) -> Iterator[Store]:
    """A store on the database's own clock."""
    store = open_store(service_settings)
    yield store
    store.close()


@pytest.fixture
def blobs(service_settings: Settings) -> BlobStore:
    return open_blobs(service_settings)
