"""Uploads whose parts go to whichever server is nearest, or alive."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator

import httpx2
import pytest

from tests.mpsearch_api.replicas.conftest import Machine, MakeMachine

PIECES = {"CHAOS_PIECE_BYTES": "65536"}
OCTETS = {"Content-Type": "application/octet-stream"}


@pytest.fixture
def machines(make_machine: MakeMachine) -> Iterator[tuple[Machine, Machine]]:
    with make_machine("a", **PIECES) as first, make_machine("b", **PIECES) as second:
        yield first, second


def announce(machine: Machine, content: bytes) -> str:
    answer = machine.client.post(
        "/v1/uploads",
        json={"size": len(content), "sha256": hashlib.sha256(content).hexdigest()},
    )
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def send(machine: Machine, upload: str, offset: int, content: object) -> httpx2.Response:
    headers = OCTETS | {"Upload-Offset": str(offset)}
    return machine.client.patch(f"/v1/uploads/{upload}", content=content, headers=headers)


def stored(machine: Machine, upload: str) -> dict:
    body = {"upload": upload, "name": "text.txt"}
    made = machine.client.post("/v1/datasets", json=body)
    assert made.status_code == 201, made.text
    return made.json()


@pytest.mark.slow
def test_parts_may_go_to_either_server_in_turn(machines: tuple[Machine, Machine]) -> None:
    content = os.urandom(400_000)
    upload = announce(machines[0], content)
    for number, start in enumerate(range(0, len(content), 50_000)):
        answer = send(machines[number % 2], upload, start, content[start : start + 50_000])
        assert answer.status_code == 204, answer.text
        asked = machines[(number + 1) % 2].client.head(f"/v1/uploads/{upload}")
        assert asked.headers["Upload-Offset"] == str(start + 50_000)
    # The first server stores what the second completed.
    assert stored(machines[0], upload)["sha256"] == hashlib.sha256(content).hexdigest()
    shared = machines[0].folder.parent / "shared"
    assert list((shared / "parts").iterdir()) == []


@pytest.mark.slow
def test_an_upload_goes_on_at_the_other_server_when_one_is_killed(
    machines: tuple[Machine, Machine],
) -> None:
    first, second = machines
    content = os.urandom(4_000_000)
    upload = announce(first, content)
    killed = threading.Event()

    def broken() -> Iterator[bytes]:
        for start in range(0, 2_500_000, 100_000):
            yield content[start : start + 100_000]
        until = time.monotonic() + 30
        while int(_offset(second, upload)) < 1 << 20 and time.monotonic() < until:
            time.sleep(0.05)
        first.kill_server()
        killed.set()
        yield content[2_500_000:]

    with pytest.raises(httpx2.TransportError):
        send(first, upload, 0, broken())
    assert killed.is_set()
    offset = int(_offset(second, upload))
    # What was stored counts, and no more than was sent; the rest went with the server.
    assert 1 << 20 <= offset <= 2_500_000
    assert send(second, upload, offset, content[offset:]).status_code == 204
    assert stored(first, upload)["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.slow
def test_of_parts_for_one_place_on_two_servers_one_wins(
    machines: tuple[Machine, Machine],
) -> None:
    for _ in range(5):
        contents = [os.urandom(30_000) for _ in machines]
        upload = machines[0].client.post("/v1/uploads", json={"size": 30_000}).json()["id"]
        answers: list[httpx2.Response | None] = [None, None]
        start = threading.Barrier(2)

        def race(number: int) -> None:
            start.wait()  # noqa: B023 (joined before the loop goes on)
            answers[number] = send(machines[number], upload, 0, contents[number])  # noqa: B023

        threads = [threading.Thread(target=race, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answer.status_code for answer in answers) == [204, 409]
        (lost,) = [answer for answer in answers if answer.status_code == 409]
        assert lost.headers["Upload-Offset"] == "30000"
        won = contents[[answer.status_code for answer in answers].index(204)]
        assert stored(machines[1], upload)["sha256"] == hashlib.sha256(won).hexdigest()


def _offset(machine: Machine, upload: str) -> str:
    return machine.client.head(f"/v1/uploads/{upload}").headers["Upload-Offset"]
