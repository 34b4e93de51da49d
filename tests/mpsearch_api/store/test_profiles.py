"""Results that can be used again."""

from __future__ import annotations

import pytest

from mpsearch_api.store import Store
from mpsearch_api.store.contract import SetClock
from mpsearch_api.store.profiles import Profiles


@pytest.fixture
def profiles(clocked_store: Store) -> Profiles:
    return clocked_store.profiles


def test_a_result_is_found_by_its_key_within_its_tenant(profiles: Profiles) -> None:
    profiles.put("ann", "model + data", "a" * 64)
    assert profiles.get("ann", "model + data") == "a" * 64
    assert profiles.get("ann", "other") is None
    assert profiles.get("bob", "model + data") is None


def test_a_later_result_replaces_the_earlier(profiles: Profiles) -> None:
    profiles.put("ann", "k", "a" * 64)
    profiles.put("ann", "k", "b" * 64)
    assert profiles.get("ann", "k") == "b" * 64


def test_a_result_can_be_forgotten(profiles: Profiles, clock: SetClock) -> None:
    profiles.put("ann", "k", "a" * 64)
    profiles.put("bob", "k", "a" * 64)
    profiles.forget("ann", "k")
    assert profiles.get("ann", "k") is None
    assert profiles.get("bob", "k") == "a" * 64
    clock.advance(10)
    profiles.put("cid", "k", "c" * 64)
    assert profiles.purge(clock.now - 5) == 1
    assert profiles.get("bob", "k") is None
    assert profiles.get("cid", "k") == "c" * 64
