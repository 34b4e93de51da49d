"""Progress as updates: not too many, with an estimate; and reading them back from anything."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsearch.progress import Progress
from mpsearch.schemas.jobs import Event
from mpsearch_api.execution.telling import INTERVAL, Teller, UpdateReader, pack_update
from mpsearch_api.store.history import update_event
from mpsearch_api.store.port import Update


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_progress_is_told_with_the_time_that_is_left() -> None:
    told: list[Update] = []
    clock = Clock()
    teller = Teller(told.append, clock)
    for done in range(101):
        teller(Progress("profile", done, 100, "scoring"))
        clock.now += 0.1
    assert told[0].progress == 0.0
    assert told[0].eta_seconds is None
    assert told[-1].progress == 1.0
    assert told[-1].eta_seconds is None
    for update in told[3:-1]:
        left = 10.0 * (1 - update.progress)
        assert update.eta_seconds == pytest.approx(left, rel=1e-6)
    assert len(told) <= 10.0 / INTERVAL + 2


def test_the_end_of_a_stage_and_a_new_stage_are_always_told() -> None:
    told: list[Update] = []
    teller = Teller(told.append, Clock())
    for stage in ("load", "price", "profile"):
        teller(Progress(stage, 0, 2))
        teller(Progress(stage, 1, 2))
        teller(Progress(stage, 2, 2))
    assert [(each.stage, each.progress) for each in told] == [
        (stage, share) for stage in ("load", "price", "profile") for share in (0.0, 1.0)
    ]


def test_a_stage_that_the_service_does_not_know_is_not_told() -> None:
    told: list[Update] = []
    Teller(told.append)(Progress("warm-up", 1, 1))
    assert told == []


UPDATES = st.builds(
    Update,
    kind=st.sampled_from(["progress", "partial", "message"]),
    stage=st.sampled_from(["load", "profile", "verify"]),
    progress=st.none() | st.floats(0, 1),
    message=st.text(max_size=40),
    eta_seconds=st.none() | st.floats(0, 1e6),
    cached=st.booleans(),
    data=st.dictionaries(st.text(max_size=5), st.none() | st.booleans() | st.text(max_size=5)),
)


@settings(deadline=None)
@given(st.lists(UPDATES, max_size=10), st.lists(st.integers(1, 200), max_size=20))
def test_updates_arrive_whole_however_they_are_cut(updates, cuts) -> None:
    said = [each for each in updates if each.kind != "progress"]
    packed = b"".join(map(pack_update, said))
    reader = UpdateReader()
    found = []
    for size in [*cuts, len(packed)]:
        found += reader.read(packed[:size])
        packed = packed[size:]
    assert found == said
    assert reader.refused == 0


@settings(deadline=None)
@given(st.lists(UPDATES, max_size=10))
def test_only_the_newest_progress_in_a_row_is_kept(updates) -> None:
    found = UpdateReader().read(b"".join(map(pack_update, updates)))
    assert [each for each in found if each.kind != "progress"] == [
        each for each in updates if each.kind != "progress"
    ]
    # That a stage was cached is never lost.
    cached = {each.stage for each in updates if each.kind == "progress" and each.cached}
    assert cached == {each.stage for each in found if each.kind == "progress" and each.cached}
    assert found[-1:] == updates[-1:]


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_whatever_a_job_writes_is_read_without_harm(garbage: bytes) -> None:
    reader = UpdateReader()
    good = Update("message", "load", message="fine")
    assert reader.read(garbage + b"\n" + pack_update(good))[-1] == good


def test_a_line_without_end_is_dropped_and_endless_talk_is_cut_off() -> None:
    reader = UpdateReader(most=3)
    for _ in range(100):
        assert reader.read(b"x" * 10_000) == []
    assert reader.refused > 0
    message = Update("message", "load", message="again")
    assert len(reader.read(b"\n" + pack_update(message) * 10)) == 3


def test_long_messages_are_cut() -> None:
    (found,) = UpdateReader().read(pack_update(Update("message", "load", message="x" * 10_000)))
    assert len(found.message) == 500


@settings(deadline=None)
@given(
    progress=st.none() | st.floats(),
    eta=st.none() | st.floats(),
    data=st.dictionaries(
        st.text(), st.none() | st.floats() | st.integers() | st.text(), max_size=3
    ),
)
def test_whatever_passes_can_be_told_by_an_event(progress, eta, data) -> None:
    told = Update("partial", "solve", progress, eta_seconds=eta, data=data)
    for update in UpdateReader().read(pack_update(told)):
        event = update_event(1, 0.0, 1, update)
        assert Event.model_validate_json(event.model_dump_json()) == event
