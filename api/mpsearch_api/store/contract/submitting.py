"""Submitting: durable, once for each idempotency key, within quotas."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import pytest

from mpsearch_api.faults import IdempotencyError, QuotaError
from mpsearch_api.store.contract.stand_ins import DAY, SetClock, a_request, all_at_once, claimed
from mpsearch_api.store.port import JobStore

__all__ = ["Submitting"]


class Submitting:
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

        all_at_once([submit] * 12)
        assert outcomes == {"taken": 5, "refused": 7}

    def test_equal_submissions_that_race_make_one_job(self, jobs: JobStore) -> None:
        found: list[tuple[str, bool]] = []

        def submit() -> None:
            job, new = jobs.submit("ann", a_request(), idempotency_key="k")
            found.append((job.id, new))

        all_at_once([submit] * 8)
        assert len({job for job, _new in found}) == 1
        assert sum(new for _job, new in found) == 1
