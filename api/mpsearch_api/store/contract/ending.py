"""Ending: cancelling, deleting and purging."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from mpsearch.schemas.jobs import Failure
from mpsearch_api.faults import StateError
from mpsearch_api.store.contract.stand_ins import LEASE, SetClock, a_request, claimed
from mpsearch_api.store.port import JobStore

__all__ = ["Ending"]


class Ending:
    def test_a_cancelled_job_is_not_claimed(self, jobs: JobStore, clock: SetClock) -> None:
        job, _ = jobs.submit("ann", a_request())
        found = jobs.cancel("ann", job.id)
        assert found is not None
        assert found.status == "cancelled"
        assert found.finished == datetime.fromtimestamp(clock.now, UTC)
        assert jobs.claim("w", LEASE) is None

    def test_cancelling_a_running_job_takes_the_claim_away_at_once(self, jobs: JobStore) -> None:
        job, _ = jobs.submit("ann", a_request())
        claim = claimed(jobs)
        jobs.cancel("ann", job.id)
        assert jobs.lost([claim]) == [claim]
        assert jobs.events("ann", job.id)[-1].status == "cancelled"

    def test_cancelling_what_has_ended_changes_nothing(self, jobs: JobStore) -> None:
        job, _ = jobs.submit("ann", a_request())
        jobs.complete(claimed(jobs), [])
        before = jobs.get("ann", job.id)
        assert jobs.cancel("ann", job.id) == before
        assert jobs.get("ann", job.id) == before

    def test_only_ended_jobs_are_deleted(self, jobs: JobStore) -> None:
        job, _ = jobs.submit("ann", a_request())
        with pytest.raises(StateError, match="queued"):
            jobs.delete("ann", job.id)
        claim = claimed(jobs)
        with pytest.raises(StateError, match="running"):
            jobs.delete("ann", job.id)
        jobs.complete(claim, [])
        assert jobs.delete("ann", job.id)
        assert not jobs.delete("ann", job.id)
        assert jobs.get("ann", job.id) is None
        assert jobs.events("ann", job.id) == []

    def test_counts_are_of_all_tenants(self, jobs: JobStore) -> None:
        for tenant in ("ann", "ann", "bob", "cid"):
            jobs.submit(tenant, a_request())
        jobs.complete(claimed(jobs), [])
        jobs.fail(claimed(jobs), Failure(kind="crashed", message="x"))
        claimed(jobs)
        assert jobs.counts() == {
            "queued": 1,
            "running": 1,
            "succeeded": 1,
            "failed": 1,
            "cancelled": 0,
        }

    def test_purging_deletes_what_ended_long_ago(self, jobs: JobStore, clock: SetClock) -> None:
        old, _ = jobs.submit("ann", a_request())
        jobs.cancel("ann", old.id)
        running, _ = jobs.submit("bob", a_request())
        claimed(jobs)
        clock.advance(100)
        young, _ = jobs.submit("ann", a_request())
        jobs.cancel("ann", young.id)
        assert jobs.purge(clock.now - 50) == [old.id]
        assert [job.id for job in jobs.page(None).items] == [young.id, running.id]
