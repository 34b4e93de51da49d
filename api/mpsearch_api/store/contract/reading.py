"""Reading: each tenant its own, pages that do not shift, events without gaps."""

from __future__ import annotations

import pytest

from mpsearch.errors import InputError
from mpsearch_api.store.contract.stand_ins import NOWHERE, a_request, claimed
from mpsearch_api.store.port import JobStore, Update

__all__ = ["Reading"]


class Reading:
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
