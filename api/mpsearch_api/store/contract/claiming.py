"""Claiming: turns of tenants, leases that run out, attempts that are counted."""

from __future__ import annotations

from datetime import UTC, datetime

from mpsearch_api.store.contract.stand_ins import LEASE, SetClock, a_request, all_at_once, claimed
from mpsearch_api.store.port import JobStore, Update

__all__ = ["Claiming"]


class Claiming:
    def test_the_oldest_job_is_claimed_first(self, jobs: JobStore) -> None:
        made = [jobs.submit("ann", a_request(str(i)))[0].id for i in range(3)]
        claims = [claimed(jobs, f"w{i}") for i in range(3)]
        assert [claim.job for claim in claims] == made
        assert [claim.attempt for claim in claims] == [1, 1, 1]
        assert [claim.worker for claim in claims] == ["w0", "w1", "w2"]
        assert claims[1].request == a_request("1")
        assert jobs.claim("w", LEASE) is None

    def test_a_claimed_job_runs(self, jobs: JobStore, clock: SetClock) -> None:
        job, _ = jobs.submit("ann", a_request())
        clock.advance(5)
        claimed(jobs)
        found = jobs.get("ann", job.id)
        assert found is not None
        assert (found.status, found.attempt) == ("running", 1)
        assert found.started == datetime.fromtimestamp(clock.now, UTC)
        assert found.finished is None

    def test_tenants_take_turns(self, jobs: JobStore) -> None:
        for _ in range(4):
            jobs.submit("ann", a_request())
        for tenant in ("bob", "bob", "cid"):
            jobs.submit(tenant, a_request())
        order = [claimed(jobs).tenant for _ in range(7)]
        # Whoever comes late waits for one job of each other tenant, not for all of them.
        assert sorted(order[:3]) == ["ann", "bob", "cid"]
        assert sorted(order[3:5]) == ["ann", "bob"]
        assert order[5:] == ["ann", "ann"]

    def test_a_renewed_lease_holds(self, jobs: JobStore, clock: SetClock) -> None:
        jobs.submit("ann", a_request())
        claim = claimed(jobs)
        for _ in range(5):
            clock.advance(LEASE - 1)
            assert jobs.renew([claim], LEASE) == []
            assert jobs.expire() == []
        assert jobs.claim("other", LEASE) is None

    def test_a_lease_that_ran_out_puts_the_job_back_in_the_queue(
        self, jobs: JobStore, clock: SetClock
    ) -> None:
        job, _ = jobs.submit("ann", a_request())
        jobs.report(claimed(jobs), [Update("progress", "profile", 0.5, "half")])
        clock.advance(LEASE - 0.001)
        assert jobs.expire() == []
        clock.advance(0.001)
        assert jobs.expire() == [job.id]
        assert jobs.expire() == []
        found = jobs.get("ann", job.id)
        assert found is not None
        assert (found.status, found.attempt, found.stage) == ("queued", 1, None)
        assert (found.progress, found.message, found.started) == (0.0, "", None)

    def test_a_claim_takes_over_what_ran_out(self, jobs: JobStore, clock: SetClock) -> None:
        job, _ = jobs.submit("ann", a_request())
        late = claimed(jobs, "late")
        clock.advance(LEASE)
        claim = claimed(jobs, "next")
        assert (claim.job, claim.attempt, claim.worker) == (job.id, 2, "next")
        assert jobs.lost([late, claim]) == [late]

    def test_a_lease_of_nothing_has_run_out(self, jobs: JobStore) -> None:
        job, _ = jobs.submit("ann", a_request())
        claim = claimed(jobs)
        assert jobs.renew([claim], 0.0) == []
        assert jobs.expire() == [job.id]

    def test_a_late_worker_that_nobody_replaced_may_go_on(
        self, jobs: JobStore, clock: SetClock
    ) -> None:
        jobs.submit("ann", a_request())
        claim = claimed(jobs)
        clock.advance(LEASE * 3)
        assert jobs.renew([claim], LEASE) == []
        assert jobs.expire() == []
        assert jobs.complete(claim, [])

    def test_a_job_whose_workers_die_fails_after_the_allowed_attempts(
        self, jobs: JobStore, clock: SetClock
    ) -> None:
        job, _ = jobs.submit("ann", a_request())
        for attempt in (1, 2, 3):
            claim = jobs.claim("w", LEASE, most_attempts=3)
            assert claim is not None
            assert claim.attempt == attempt
            clock.advance(LEASE)
        assert jobs.claim("w", LEASE, most_attempts=3) is None
        found = jobs.get("ann", job.id)
        assert found is not None
        assert found.status == "failed"
        assert found.finished is not None
        assert found.failure is not None
        assert found.failure.kind == "worker_died"
        assert "3 times" in found.failure.message

    def test_a_released_job_goes_back_to_its_place_and_does_not_count(
        self, jobs: JobStore, clock: SetClock
    ) -> None:
        job, _ = jobs.submit("ann", a_request())
        jobs.submit("ann", a_request())
        for attempt in range(1, 6):
            claim = claimed(jobs)
            assert (claim.job, claim.attempt) == (job.id, attempt)
            assert jobs.release(claim)
        claimed(jobs)
        clock.advance(LEASE)
        jobs.expire(most_attempts=2)
        found = jobs.get("ann", job.id)
        assert found is not None
        assert found.status == "queued"

    def test_renewing_tells_of_each_claim_by_itself(self, jobs: JobStore) -> None:
        for _ in range(3):
            jobs.submit("ann", a_request())
        claims = [claimed(jobs) for _ in range(3)]
        jobs.cancel("ann", claims[1].job)
        assert jobs.lost(claims) == [claims[1]]
        assert jobs.renew(claims, LEASE) == [claims[1]]
        assert jobs.renew([], LEASE) == []
        assert jobs.lost([]) == []

    def test_no_job_is_claimed_twice_by_threads_that_race(self, jobs: JobStore) -> None:
        made = {jobs.submit(f"t{i % 3}", a_request())[0].id for i in range(24)}
        taken: list[str] = []

        def work() -> None:
            while (claim := jobs.claim("w", 600.0)) is not None:
                taken.append(claim.job)

        all_at_once([work] * 6)
        assert sorted(taken) == sorted(made)
