"""What dispatchers tell of themselves, for servers on other machines."""

from __future__ import annotations

from mpsearch_api.settings import Settings
from mpsearch_api.store import Store, open_store
from mpsearch_api.store.contract import SetClock
from mpsearch_api.store.dispatchers import Heard


def test_what_was_told_last_is_heard_until_it_is_old(clocked_store: Store, clock: SetClock) -> None:
    dispatchers = clocked_store.dispatchers
    assert dispatchers.heard(10) == []
    dispatchers.tell("b", "no GPU", 0)
    clock.advance(4)
    dispatchers.tell("a", None, 2)
    assert dispatchers.heard(10) == [Heard("a", 0.0, None, 2), Heard("b", 4.0, "no GPU", 0)]
    clock.advance(7)
    assert dispatchers.heard(10) == [Heard("a", 7.0, None, 2)]
    dispatchers.tell("b", None, 1)
    assert dispatchers.heard(5) == [Heard("b", 0.0, None, 1)]


def test_who_ends_is_forgotten_and_so_are_those_long_silent(
    clocked_store: Store, clock: SetClock
) -> None:
    dispatchers = clocked_store.dispatchers
    dispatchers.tell("silent", None, 0)
    clock.advance(3601)
    dispatchers.tell("ends", None, 0)
    dispatchers.tell("stays", None, 0)
    dispatchers.retire("ends")
    assert [each.name for each in dispatchers.heard(1e9)] == ["stays"]


def test_another_process_hears_on_the_database_s_clock(
    store: Store, service_settings: Settings
) -> None:
    other = open_store(service_settings)
    other.dispatchers.tell("a", None, 0)
    other.close()
    (heard,) = store.dispatchers.heard(60)
    assert heard.name == "a"
    assert 0 <= heard.age < 60
