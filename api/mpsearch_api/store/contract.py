"""What every job store must do, as tests: subclass `JobStoreContract` and provide two fixtures.

```python
class TestMyStore(JobStoreContract):
    @pytest.fixture
    def clock(self):
        return SetClock()

    @pytest.fixture
    def jobs(self, clock):  # empty, and running on that clock
        return MyStore(clock=clock)
```
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import pytest

from mpsearch.errors import InputError
from mpsearch.schemas.jobs import Artifact, Failure, JobRequest
from mpsearch_api.faults import IdempotencyError, QuotaError, StateError
from mpsearch_api.store.port import Claim, JobStore, Update

__all__ = ["START", "JobStoreContract", "SetClock", "a_request"]

LEASE = 10.0
DAY = 24 * 3600.0
START = 1_800_000_000.0
NOWHERE = "job_00000000000000000000000000"


class SetClock:
    """A clock that stands until it is moved; Unix seconds."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        """Tell the time."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Move on."""
        self.now += seconds


def a_request(label: str = "") -> JobRequest:
    """Make a request; the store reads nothing in it."""
    return JobRequest(
        model="digits-resnet", data="digits", budget={"weight_memory": "0.25x"}, label=label
    )


def claimed(jobs: JobStore, worker: str = "w") -> Claim:
    """Claim a job that is there."""
    claim = jobs.claim(worker, LEASE)
    assert claim is not None
    return claim


def an_artifact(name: str = "allocation.json") -> Artifact:
    """Describe a file."""
    return Artifact(name=name, media_type="application/json", size=7, sha256="ab" * 32)


class _Submitting:
    def test_a_submitted_job_is_queued_and_says_so_in_its_first_event(
        self, jobs: JobStore, clock: SetClock
    ) -> None:
        job, new = jobs.submit("ann", a_request("first"))
        assert new
        assert (job.status, job.attempt, job.request) == ("queued", 0, a_request("first"))
        assert job.created == datetime.fromtimestamp(clock.now, UTC)
        assert jobs.get("ann", job.id) == job
        (event,) = jobs.events("ann", job.id)
        assert (event.id, event.kind, event.status, event.attempt) == (1, "status", "queued", 0)

    @pytest.mark.parametrize("label", ["\0", "naïve ☃ 𝔘", "'; DROP TABLE jobs; --", "%s :x", "\\"])
    def test_any_text_comes_back_as_it_was(self, jobs: JobStore, label: str) -> None:
        job, _ = jobs.submit("ann", a_request(label))
        found = jobs.get("ann", job.id)
        assert found is not None
        assert found.request.label == label

    def test_a_repeated_idempotency_key_gives_the_same_job(self, jobs: JobStore) -> None:
        first, _ = jobs.submit("ann", a_request(), idempotency_key="k\0é")
        again, new = jobs.submit("ann", a_request(), idempotency_key="k\0é")
        assert (again.id, new) == (first.id, False)
        assert jobs.counts()["queued"] == 1

    def test_a_repeated_submission_shows_the_job_as_it_now_stands(self, jobs: JobStore) -> None:
        first, _ = jobs.submit("ann", a_request(), idempotency_key="k")
        jobs.cancel("ann", first.id)
        again, _ = jobs.submit("ann", a_request(), idempotency_key="k")
        assert again.status == "cancelled"

    def test_an_idempotency_key_with_another_request_is_refused(self, jobs: JobStore) -> None:
        jobs.submit("ann", a_request("one"), idempotency_key="k")
        with pytest.raises(IdempotencyError, match="'k'"):
            jobs.submit("ann", a_request("two"), idempotency_key="k")
        assert jobs.counts()["queued"] == 1

    def test_tenants_do_not_share_idempotency_keys(self, jobs: JobStore) -> None:
        first, _ = jobs.submit("ann", a_request(), idempotency_key="k")
        second, new = jobs.submit("bob", a_request(), idempotency_key="k")
        assert new
        assert second.id != first.id

    def test_an_idempotency_key_is_remembered_for_a_day(
        self, jobs: JobStore, clock: SetClock
    ) -> None:
        jobs.submit("ann", a_request(), idempotency_key="k")
        clock.advance(DAY - 1)
        assert not jobs.submit("ann", a_request(), idempotency_key="k")[1]
        clock.advance(2)
        assert jobs.submit("ann", a_request("other"), idempotency_key="k")[1]

    def test_an_idempotency_key_is_forgotten_with_its_job(self, jobs: JobStore) -> None:
        job, _ = jobs.submit("ann", a_request(), idempotency_key="k")
        jobs.cancel("ann", job.id)
        jobs.delete("ann", job.id)
        assert jobs.submit("ann", a_request(), idempotency_key="k")[1]

    def test_the_quota_counts_open_jobs_of_the_tenant_alone(self, jobs: JobStore) -> None:
        jobs.submit("ann", a_request(), most_open=2)
        second, _ = jobs.submit("ann", a_request(), most_open=2, idempotency_key="k")
        claimed(jobs)
        with pytest.raises(QuotaError, match="2"):
            jobs.submit("ann", a_request(), most_open=2)
        assert not jobs.submit("ann", a_request(), most_open=2, idempotency_key="k")[1]
        assert jobs.submit("bob", a_request(), most_open=2)[1]
        jobs.cancel("ann", second.id)
        assert jobs.submit("ann", a_request(), most_open=2)[1]

    def test_the_quota_holds_when_submissions_race(self, jobs: JobStore) -> None:
        outcomes: Counter[str] = Counter()

        def submit() -> None:
            try:
                jobs.submit("ann", a_request(), most_open=5)
            except QuotaError:
                outcomes["refused"] += 1
            else:
                outcomes["taken"] += 1

        _all_at_once([submit] * 12)
        assert outcomes == {"taken": 5, "refused": 7}

    def test_equal_submissions_that_race_make_one_job(self, jobs: JobStore) -> None:
        found: list[tuple[str, bool]] = []

        def submit() -> None:
            job, new = jobs.submit("ann", a_request(), idempotency_key="k")
            found.append((job.id, new))

        _all_at_once([submit] * 8)
        assert len({job for job, _new in found}) == 1
        assert sum(new for _job, new in found) == 1


class _Reading:
    def test_another_tenants_job_is_not_there(self, jobs: JobStore) -> None:
        job, _ = jobs.submit("ann", a_request())
        assert jobs.get("bob", job.id) is None
        assert jobs.events("bob", job.id) == []
        assert jobs.cancel("bob", job.id) is None
        assert jobs.delete("bob", job.id) is False
        assert jobs.page("bob").items == []
        assert jobs.get("ann", job.id) == job

    def test_the_administrator_sees_every_tenants_jobs(self, jobs: JobStore) -> None:
        job, _ = jobs.submit("ann", a_request())
        jobs.submit("bob", a_request())
        assert jobs.get(None, job.id) == job
        assert len(jobs.page(None).items) == 2
        assert len(jobs.events(None, job.id)) == 1

    @pytest.mark.parametrize("name", ["", "\0", "job_", NOWHERE, "job_" + "é" * 26, "x" * 10_000])
    def test_what_names_no_job_finds_none(self, jobs: JobStore, name: str) -> None:
        assert jobs.get("ann", name) is None
        assert jobs.events("ann", name) == []
        assert jobs.cancel("ann", name) is None
        assert jobs.delete("ann", name) is False

    def test_pages_run_from_the_newest_and_end(self, jobs: JobStore) -> None:
        made = [jobs.submit("ann", a_request())[0].id for _ in range(7)]
        seen: list[str] = []
        cursor: str | None = None
        sizes = []
        while True:
            page = jobs.page("ann", cursor=cursor, limit=3)
            seen += [job.id for job in page.items]
            sizes.append(len(page.items))
            cursor = page.next
            if cursor is None:
                break
        assert seen == made[::-1]
        assert sizes == [3, 3, 1]

    def test_a_page_that_ends_the_list_exactly_has_no_next(self, jobs: JobStore) -> None:
        for _ in range(4):
            jobs.submit("ann", a_request())
        second = jobs.page("ann", cursor=jobs.page("ann", limit=2).next, limit=2)
        assert len(second.items) == 2
        assert second.next is None

    def test_new_and_deleted_jobs_do_not_shift_the_pages_that_follow(self, jobs: JobStore) -> None:
        made = [jobs.submit("ann", a_request())[0].id for _ in range(6)]
        page = jobs.page("ann", limit=2)
        jobs.submit("ann", a_request())
        jobs.cancel("ann", made[4])
        jobs.delete("ann", made[4])
        rest = jobs.page("ann", cursor=page.next, limit=10)
        assert [job.id for job in rest.items] == made[3::-1]

    def test_a_page_can_ask_for_one_status(self, jobs: JobStore) -> None:
        first, _ = jobs.submit("ann", a_request())
        second, _ = jobs.submit("ann", a_request())
        jobs.cancel("ann", first.id)
        assert [job.id for job in jobs.page("ann", status="queued").items] == [second.id]
        assert [job.id for job in jobs.page("ann", status="cancelled").items] == [first.id]
        assert jobs.page("ann", status="running").items == []

    @pytest.mark.parametrize("cursor", ["", "x", "é", "\0", "AAAA", "W10", "MTI=" * 100, "bnVsbA"])
    def test_a_cursor_that_is_none_is_refused(self, jobs: JobStore, cursor: str) -> None:
        with pytest.raises(InputError, match="cursor"):
            jobs.page("ann", cursor=cursor)

    def test_a_cursor_of_another_list_is_refused(self, jobs: JobStore) -> None:
        for _ in range(3):
            jobs.submit("ann", a_request())
        cursor = jobs.page("ann", limit=1).next
        with pytest.raises(InputError, match="another list"):
            jobs.page("ann", cursor=cursor, status="queued")

    def test_events_are_numbered_from_one_without_gaps(self, jobs: JobStore) -> None:
        job, _ = jobs.submit("ann", a_request())
        claim = claimed(jobs)
        for share in (0.25, 0.5):
            jobs.report(claim, [Update("progress", "load", share), Update("message", "load")])
        jobs.release(claim)
        claim = claimed(jobs)
        jobs.complete(claim, [])
        events = jobs.events("ann", job.id)
        assert [event.id for event in events] == list(range(1, len(events) + 1))
        assert [event.kind for event in events] == [
            *["status"] * 2,
            *["progress", "message"] * 2,
            *["status"] * 3,
        ]

    def test_events_can_be_read_in_parts(self, jobs: JobStore) -> None:
        job, _ = jobs.submit("ann", a_request())
        jobs.report(claimed(jobs), [Update("message", "load", message=str(i)) for i in range(8)])
        whole = jobs.events("ann", job.id)
        assert jobs.events("ann", job.id, after=4) == whole[4:]
        assert jobs.events("ann", job.id, after=4, limit=2) == whole[4:6]
        assert jobs.events("ann", job.id, after=10**30) == []
        assert jobs.events("ann", job.id, after=-5) == whole


class _Claiming:
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

        _all_at_once([work] * 6)
        assert sorted(taken) == sorted(made)


class _Running:
    def test_progress_moves_the_job_and_is_kept_as_events(self, jobs: JobStore) -> None:
        job, _ = jobs.submit("ann", a_request())
        claim = claimed(jobs)
        told = [
            Update("progress", "load", 1.0, cached=True),
            Update("progress", "profile", 0.25, "layer 1 of 4", 12.5),
            Update("partial", "profile", data={"loss": 0.5, "layers": 4, "ok": True, "x": None}),
            Update("message", "profile", message="slow"),
        ]
        assert jobs.report(claim, told)
        found = jobs.get("ann", job.id)
        assert found is not None
        assert (found.stage, found.progress, found.message) == ("profile", 0.25, "layer 1 of 4")
        assert (found.eta_seconds, found.cached) == (12.5, ["load"])
        events = jobs.events("ann", job.id, after=2)
        assert [event.kind for event in events] == [update.kind for update in told]
        assert [event.attempt for event in events] == [1] * 4
        assert events[1].eta_seconds == 12.5
        assert events[2].data == {"loss": 0.5, "layers": 4, "ok": True, "x": None}
        assert events[3].message == "slow"

    def test_a_new_stage_begins_at_nothing(self, jobs: JobStore) -> None:
        job, _ = jobs.submit("ann", a_request())
        claim = claimed(jobs)
        jobs.report(claim, [Update("progress", "load", 0.75)])
        jobs.report(claim, [Update("progress", "load", message="still")])
        assert getattr(jobs.get("ann", job.id), "progress", None) == 0.75
        jobs.report(claim, [Update("progress", "price")])
        assert getattr(jobs.get("ann", job.id), "progress", None) == 0.0

    def test_completing_publishes_the_artifacts(self, jobs: JobStore, clock: SetClock) -> None:
        job, _ = jobs.submit("ann", a_request())
        claim = claimed(jobs)
        clock.advance(3)
        assert jobs.complete(claim, [an_artifact("a"), an_artifact("b")])
        found = jobs.get("ann", job.id)
        assert found is not None
        assert found.status == "succeeded"
        assert found.progress == 1.0
        assert found.artifacts == [an_artifact("a"), an_artifact("b")]
        assert found.finished == datetime.fromtimestamp(clock.now, UTC)
        assert jobs.events("ann", job.id)[-1].status == "succeeded"

    def test_a_failure_is_kept_with_what_the_job_left(self, jobs: JobStore) -> None:
        job, _ = jobs.submit("ann", a_request())
        failure = Failure(
            kind="infeasible",
            message="weight_memory " * 100 + "\0",
            exit_code=3,
            minimum={"weight_memory": 0.5},
            log_tail="last\nlines",
        )
        assert jobs.fail(claimed(jobs), failure, artifacts=[an_artifact("log.txt")])
        found = jobs.get("ann", job.id)
        assert found is not None
        assert (found.status, found.failure) == ("failed", failure)
        assert found.artifacts == [an_artifact("log.txt")]

    @pytest.mark.parametrize("fate", ["taken over", "cancelled", "completed", "deleted"])
    def test_a_claim_that_is_lost_writes_nothing(
        self, jobs: JobStore, clock: SetClock, fate: str
    ) -> None:
        job, _ = jobs.submit("ann", a_request())
        claim = claimed(jobs)
        if fate == "taken over":
            clock.advance(LEASE)
            claimed(jobs, "other")
        elif fate == "completed":
            jobs.complete(claim, [an_artifact()])
        else:
            jobs.cancel("ann", job.id)
        if fate == "deleted":
            jobs.delete("ann", job.id)
        before = (jobs.get("ann", job.id), jobs.events("ann", job.id))
        assert jobs.lost([claim]) == [claim]
        assert jobs.renew([claim], LEASE) == [claim]
        assert not jobs.report(claim, [Update("progress", "load", 0.5)])
        assert not jobs.complete(claim, [an_artifact("stolen")])
        assert not jobs.fail(claim, Failure(kind="internal", message="x"))
        assert not jobs.release(claim)
        assert (jobs.get("ann", job.id), jobs.events("ann", job.id)) == before

    def test_of_completing_and_cancelling_at_once_one_wins(self, jobs: JobStore) -> None:
        for _ in range(5):
            job, _ = jobs.submit("ann", a_request())
            claim = claimed(jobs)
            outcome: dict[str, object] = {}

            def complete(claim: Claim = claim, outcome: dict[str, object] = outcome) -> None:
                outcome["completed"] = jobs.complete(claim, [])

            def cancel(name: str = job.id, outcome: dict[str, object] = outcome) -> None:
                found = jobs.cancel("ann", name)
                outcome["answer"] = found and found.status

            _all_at_once([complete, cancel])
            found = jobs.get("ann", job.id)
            assert found is not None
            assert found.status == ("succeeded" if outcome["completed"] else "cancelled")
            assert outcome["answer"] == found.status


class _Ending:
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


class JobStoreContract(_Submitting, _Reading, _Claiming, _Running, _Ending):
    """Everything a job store must do."""


def _all_at_once(tasks: Sequence[Callable[[], None]]) -> None:
    barrier = threading.Barrier(len(tasks))
    errors: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        barrier.wait()
        try:
            task()
        except BaseException as error:  # noqa: BLE001 (told to the test's own thread below)
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
