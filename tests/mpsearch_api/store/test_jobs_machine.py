"""Random histories of a job store, step by step against a model in plain Python."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete

from mpsearch.schemas.jobs import Artifact, Failure
from mpsearch_api.faults import IdempotencyError, QuotaError, StateError
from mpsearch_api.settings import Settings
from mpsearch_api.store import Store, open_store
from mpsearch_api.store.contract import START, SetClock, a_request
from mpsearch_api.store.port import Claim, Update
from mpsearch_api.store.tables import metadata

TENANTS = ("ann", "bob", "cid")
MOST_ATTEMPTS = 2
MOST_OPEN = 4
EXAMPLES = {"repeatable": 25, "explore": 300}


@dataclass
class ModelJob:
    """A job as the model knows it."""

    tenant: str
    label: str
    status: str = "queued"
    attempt: int = 0
    deaths: int = 0
    lease_until: float | None = None
    progress: float = 0.0
    artifacts: list[str] = field(default_factory=list)
    history: list[tuple[str, str | float]] = field(default_factory=lambda: [("status", "queued")])

    @property
    def ended(self) -> bool:
        return self.status in ("succeeded", "failed", "cancelled")

    def become(self, status: str) -> None:
        self.status = status
        self.history.append(("status", status))
        if status != "running":
            self.lease_until = None
        if status == "queued":
            self.progress = 0.0


class JobsMachine(RuleBasedStateMachine):
    """Every call of the store, in any order, with claims old and new."""

    store: Store
    clock: SetClock

    @initialize()
    def empty(self) -> None:
        self.clock.now = START
        with self.store.database.write() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(delete(table))
        # In order of submission.
        self.model: dict[str, ModelJob] = {}
        self.claims: list[Claim] = []
        self.keys: dict[tuple[str, str], tuple[str, str]] = {}
        self.turns: dict[str, int] = {}

    @rule(tenant=st.sampled_from(TENANTS), label=st.sampled_from(["x", "y"]))
    def submit(self, tenant: str, label: str) -> None:
        is_full = self._open(tenant) >= MOST_OPEN
        try:
            job, new = self.store.jobs.submit(tenant, a_request(label), most_open=MOST_OPEN)
        except QuotaError:
            assert is_full
            return
        assert new
        assert not is_full
        assert job.id not in self.model
        self.model[job.id] = ModelJob(tenant, label)

    @rule(
        tenant=st.sampled_from(TENANTS),
        key=st.sampled_from(["k1", "k2"]),
        label=st.sampled_from(["x", "y"]),
    )
    def submit_with_key(self, tenant: str, key: str, label: str) -> None:
        earlier, asked = self.keys.get((tenant, key), (None, label))
        try:
            job, new = self.store.jobs.submit(tenant, a_request(label), idempotency_key=key)
        except IdempotencyError:
            assert asked != label
            return
        assert asked == label
        assert new == (earlier is None)
        assert earlier in (None, job.id)
        if new:
            self.model[job.id] = ModelJob(tenant, label)
            self.keys[tenant, key] = (job.id, label)

    @rule(lease=st.sampled_from([5.0, 10.0]))
    def claim(self, lease: float) -> None:
        self._expire_in_model()
        waiting = [job for job in self.model.values() if job.status == "queued"]
        claim = self.store.jobs.claim("w", lease, most_attempts=MOST_ATTEMPTS)
        if not waiting:
            assert claim is None
            return
        assert claim is not None
        tenant = min({job.tenant for job in waiting}, key=lambda t: (self.turns.get(t, 0), t))
        name = next(n for n, j in self.model.items() if j.status == "queued" and j.tenant == tenant)
        job = self.model[name]
        assert (claim.job, claim.attempt) == (name, job.attempt + 1)
        assert claim.request == a_request(job.label)
        job.attempt += 1
        job.become("running")
        job.lease_until = self.clock.now + lease
        self.turns[tenant] = max(self.turns.values(), default=0) + 1
        self.claims.append(claim)

    @rule(seconds=st.sampled_from([1.0, 4.0, 5.0, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def expire(self) -> None:
        expected = self._expire_in_model()
        assert sorted(self.store.jobs.expire(most_attempts=MOST_ATTEMPTS)) == sorted(expected)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), lease=st.sampled_from([0.0, 5.0, 10.0]))
    def renew(self, data: st.DataObject, lease: float) -> None:
        some = data.draw(st.lists(st.sampled_from(self.claims), unique_by=id, max_size=4))
        lost = [claim for claim in some if not self._holds(claim)]
        assert self.store.jobs.lost(some) == lost
        assert self.store.jobs.renew(some, lease) == lost
        for claim in some:
            if claim not in lost:
                self.model[claim.job].lease_until = self.clock.now + lease

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), shares=st.lists(st.sampled_from([0.25, 0.5, 1.0]), max_size=3))
    def report(self, data: st.DataObject, shares: list[float]) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        told = [Update("progress", "profile", share) for share in shares]
        assert self.store.jobs.report(claim, told) == self._holds(claim)
        if self._holds(claim):
            job = self.model[claim.job]
            job.history += [("progress", share) for share in shares]
            job.progress = shares[-1] if shares else job.progress

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        name = f"attempt-{claim.attempt}"
        made = [Artifact(name=name, media_type="text/plain", size=1, sha256="0" * 64)]
        assert self.store.jobs.complete(claim, made) == self._holds(claim)
        if self._holds(claim):
            job = self.model[claim.job]
            job.become("succeeded")
            job.progress = 1.0
            job.artifacts = [name]

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        failure = Failure(kind="crashed", message="x")
        assert self.store.jobs.fail(claim, failure) == self._holds(claim)
        if self._holds(claim):
            self.model[claim.job].become("failed")

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        assert self.store.jobs.release(claim) == self._holds(claim)
        if self._holds(claim):
            self.model[claim.job].become("queued")

    @precondition(lambda self: self.model)
    @rule(data=st.data(), stranger=st.booleans())
    def cancel(self, data: st.DataObject, stranger: bool) -> None:
        name = data.draw(st.sampled_from(list(self.model)))
        job = self.model[name]
        if stranger:
            assert self.store.jobs.cancel("stranger", name) is None
            return
        answer = self.store.jobs.cancel(job.tenant, name)
        if not job.ended:
            job.become("cancelled")
        assert answer is not None
        assert answer.status == job.status

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(list(self.model)))
        job = self.model[name]
        if not job.ended:
            with pytest.raises(StateError):
                self.store.jobs.delete(job.tenant, name)
            return
        assert self.store.jobs.delete(job.tenant, name)
        del self.model[name]
        self.keys = {key: made for key, made in self.keys.items() if made[0] != name}

    @invariant()
    def the_store_shows_what_the_model_knows(self) -> None:
        if not hasattr(self, "model"):
            return
        shown = {job.id: job for job in self.store.jobs.page(None, limit=1000).items}
        assert list(shown) == list(self.model)[::-1]
        for name, job in self.model.items():
            found = shown[name]
            assert (found.status, found.attempt) == (job.status, job.attempt)
            assert found.progress == job.progress
            assert [artifact.name for artifact in found.artifacts] == job.artifacts
            events = self.store.jobs.events(job.tenant, name)
            assert [event.id for event in events] == list(range(1, len(events) + 1))
            told = [(e.kind, e.status if e.kind == "status" else e.progress) for e in events]
            assert told == job.history
        counts = self.store.jobs.counts()
        assert sum(counts.values()) == len(self.model)

    def _holds(self, claim: Claim) -> bool:
        job = self.model.get(claim.job)
        return job is not None and job.status == "running" and job.attempt == claim.attempt

    def _open(self, tenant: str) -> int:
        return sum(job.tenant == tenant and not job.ended for job in self.model.values())

    def _expire_in_model(self) -> list[str]:
        late = [
            name
            for name, job in self.model.items()
            if job.status == "running" and job.lease_until <= self.clock.now
        ]
        for name in late:
            job = self.model[name]
            job.deaths += 1
            job.become("queued" if job.deaths < MOST_ATTEMPTS else "failed")
        return late


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def store(service_settings: Settings, clock: SetClock) -> Iterator[Store]:
    # A database in memory where there is one: what is tested here is the order of things.
    memory = Path("/dev/shm")
    if service_settings.database_url is None and memory.is_dir():
        folder = memory / f"mpsearch-{os.getpid()}-{id(clock)}"
        service_settings = service_settings.model_copy(update={"data_dir": folder})
    store = open_store(service_settings, clock=clock)
    yield store
    store.close()
    if service_settings.data_dir.is_relative_to(memory):
        shutil.rmtree(service_settings.data_dir)


@pytest.mark.slow
def test_any_history_of_calls_matches_the_model(store: Store, clock: SetClock) -> None:
    class Machine(JobsMachine):
        pass

    Machine.store, Machine.clock = store, clock
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES[os.environ.get("HYPOTHESIS_PROFILE", "repeatable")],
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
