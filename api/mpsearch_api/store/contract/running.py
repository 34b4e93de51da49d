"""Running: progress, completion and failure, and nothing by a claim that is lost."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from mpsearch.schemas.jobs import Failure
from mpsearch_api.store.contract.stand_ins import (
    LEASE,
    SetClock,
    a_request,
    all_at_once,
    an_artifact,
    claimed,
)
from mpsearch_api.store.port import Claim, JobStore, Update

__all__ = ["Running"]


class Running:
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

            all_at_once([complete, cancel])
            found = jobs.get("ann", job.id)
            assert found is not None
            assert found.status == ("succeeded" if outcome["completed"] else "cancelled")
            assert outcome["answer"] == found.status
