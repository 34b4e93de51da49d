"""Two servers on one PostgreSQL: what one takes, runs and ends is seen through the other."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.mpsearch_api.replicas.conftest import MakeMachine

LOST = {"CHAOS_CHANNEL": "mpsearch_nowhere"}
"""A server whose notifications are lost on the way."""

TOLD = {"CHAOS_BELL_SECONDS": "3600"}
"""A server that looks at the database only when it is told to."""


@pytest.mark.slow
@pytest.mark.parametrize("hears", [TOLD, LOST], ids=["by notification", "by looking"])
def test_a_job_run_elsewhere_is_followed_here(
    make_machine: MakeMachine, hears: dict[str, str]
) -> None:
    with make_machine("a", dispatcher=True) as first, make_machine("b", **hears) as second:
        job = first.submit("sleep").json()["id"]
        events = second.stream(job)
        # It sleeps for ever: what comes, comes while it runs.
        seen = [_kind(next(events)) for _ in range(3)]
        assert seen == ["queued", "running", "progress"]
        first.client.post(f"/v1/jobs/{job}/cancel")
        assert [_kind(event) for event in events] == ["cancelled"]
        other = first.submit("quick").json()["id"]
        assert [_kind(event) for event in second.stream(other)] == [
            "queued",
            "running",
            "progress",
            "partial",
            "succeeded",
        ]


def _kind(event: dict) -> str:
    return event.get("status") or event["kind"]


@pytest.mark.slow
def test_waits_cancellations_and_keys_hold_across_servers(make_machine: MakeMachine) -> None:
    with make_machine("a", dispatcher=True) as first, make_machine("b", **TOLD) as second:
        key = {"Idempotency-Key": "once"}
        made = first.submit("sleep", **key)
        again = second.submit("sleep", **key)
        assert (made.status_code, again.status_code) == (202, 200)
        assert made.json()["id"] == again.json()["id"]
        assert second.submit("quick", **key).status_code == 409

        job = made.json()["id"]
        first.until(job, "running")
        ended: list[dict] = []
        waiter = threading.Thread(
            target=lambda: ended.append(second.client.get(f"/v1/jobs/{job}?wait=30").json())
        )
        waiter.start()
        time.sleep(0.5)
        assert not ended
        assert first.client.post(f"/v1/jobs/{job}/cancel").json()["status"] == "cancelled"
        waiter.join(30)
        assert ended[0]["status"] == "cancelled"

        other = first.submit("sleep").json()["id"]
        first.until(other, "running")
        assert second.client.post(f"/v1/jobs/{other}/cancel").json()["status"] == "cancelled"
        # The dispatcher of the first machine ends the job's process, and takes the next.
        quick = second.submit("quick").json()["id"]
        assert second.client.get(f"/v1/jobs/{quick}?wait=30").json()["status"] == "succeeded"
        assert not list((first.folder / "data" / "run").glob(f"*/{other}-*"))


@pytest.mark.slow
def test_servers_that_get_the_same_key_at_once_make_one_job(make_machine: MakeMachine) -> None:
    with make_machine("a") as first, make_machine("b") as second, ThreadPoolExecutor(16) as pool:
        for number in range(5):
            key = {"Idempotency-Key": f"key {number}"}
            answers = list(
                pool.map(lambda machine, key=key: machine.submit("x", **key), [first, second] * 8)
            )
            assert sorted(answer.status_code for answer in answers) == [200] * 15 + [202]
            assert len({answer.json()["id"] for answer in answers}) == 1


@pytest.mark.slow
def test_a_server_without_dispatcher_is_ready_while_another_machine_has_one(
    make_machine: MakeMachine,
) -> None:
    with make_machine("b") as second:
        answer = second.client.get("/readyz")
        assert answer.status_code == 503
        assert set(answer.json()["faults"]) == {"dispatcher"}
        with make_machine("a", dispatcher=True) as first:
            _until_ready(second, 200)
            first.dispatcher.kill()
            first.dispatcher.wait()
            # Three leases later nobody has been heard of.
            _until_ready(second, 503)


def _until_ready(machine, status: int) -> None:
    until = time.monotonic() + 60
    while machine.client.get("/readyz").status_code != status:
        assert time.monotonic() < until, machine.client.get("/readyz").text
        time.sleep(0.2)


@pytest.mark.slow
def test_machines_that_start_at_once_on_an_empty_database_all_come_up(
    make_machine: MakeMachine,
) -> None:
    with ThreadPoolExecutor(4) as pool:
        machines = [make_machine(name, dispatcher=name == "a") for name in "abcd"]
        try:
            made = list(pool.map(lambda machine: machine.__enter__(), machines))
            job = made[1].submit("quick").json()["id"]
            for machine in made:
                found = machine.client.get(f"/v1/jobs/{job}?wait=30").json()
                assert found["status"] == "succeeded"
        finally:
            list(pool.map(lambda machine: machine.__exit__(None, None, None), machines))
