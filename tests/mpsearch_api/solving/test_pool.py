"""Whose turn it is when more is asked than the solvers can do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mpsearch_api.solving.pool import MOST_OF_ONE, MOST_WAITING, BusyError, SolvePool


class Worker:
    """Answers when told to, and notes what it was asked."""

    def __init__(self) -> None:
        self.tasks = 0
        self.asked: list[str] = []
        self.go_on = asyncio.Semaphore(0)

    async def ask(self, task: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        self.asked.append(task["name"])
        await self.go_on.acquire()
        return {"ok": True}, body


async def waiting(pool: SolvePool, names: list[str], tenant: str) -> list[asyncio.Task[bytes]]:
    tasks = [asyncio.create_task(pool.run({"name": name}, tenant=tenant)) for name in names]
    await asyncio.sleep(0)
    return tasks


def test_tenants_take_turns_and_each_keeps_its_order() -> None:
    async def scene() -> list[str]:
        pool, worker = SolvePool(0, seconds=60.0), Worker()
        tasks = await waiting(pool, ["a1", "a2", "a3", "a4"], "ann")
        tasks += await waiting(pool, ["b1", "b2"], "bob")
        tasks += await waiting(pool, ["c1"], "cleo")
        pool._offer(worker)
        for _ in tasks:
            worker.go_on.release()
        await asyncio.gather(*tasks)
        return worker.asked

    assert asyncio.run(scene()) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_one_tenant_cannot_take_every_place() -> None:
    async def scene() -> None:
        pool, worker = SolvePool(0, seconds=60.0), Worker()
        mine = await waiting(pool, ["a"] * MOST_OF_ONE, "ann")
        with pytest.raises(BusyError, match=f"{MOST_OF_ONE} of them yours"):
            await pool.run({"name": "one more"}, tenant="ann")
        others = []
        for number in range(MOST_WAITING // MOST_OF_ONE - 1):
            others += await waiting(pool, ["x"] * MOST_OF_ONE, f"tenant{number}")
        with pytest.raises(BusyError):
            await pool.run({"name": "nobody fits in"}, tenant="zoe")
        pool._offer(worker)
        for _ in range(MOST_WAITING):
            worker.go_on.release()
        await asyncio.gather(*mine, *others)
        assert len(worker.asked) == MOST_WAITING
        assert not pool._waiting

    asyncio.run(scene())


def test_who_gives_up_waiting_loses_no_solver() -> None:
    async def scene() -> None:
        pool, worker = SolvePool(0, seconds=60.0), Worker()
        early, late, last = await waiting(pool, ["early", "late", "last"], "ann")
        early.cancel()
        await asyncio.gather(early, return_exceptions=True)
        pool._offer(worker)  # for `late`, which is cancelled before it hears of it
        late.cancel()
        worker.go_on.release()
        await asyncio.gather(late, return_exceptions=True)
        assert await last == b""
        assert worker.asked == ["last"]
        assert pool._idle == [worker]

    asyncio.run(scene())
