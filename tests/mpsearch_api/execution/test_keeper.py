"""How a keeper weighs its job when the plain sum of its processes is over the limit."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from mpsearch_api.execution import keeper

LIMIT = 2**20
"""Less than any Python process has."""


@pytest.fixture
def scale() -> keeper._Scale:
    return keeper._Scale()


def weighed(scale: keeper._Scale) -> int:
    """Ask until there is an answer other than that it takes longer."""
    until = time.monotonic() + 30.0
    while time.monotonic() < until:
        found = scale.weigh([os.getpid()], LIMIT)
        if found != LIMIT:
            return found
    raise AssertionError("never weighed")


def test_what_is_over_the_limit_by_the_plain_sum_is_weighed_fairly(scale) -> None:
    assert LIMIT < weighed(scale) <= keeper.resident_memory([os.getpid()])


def test_a_job_that_ends_while_it_is_weighed_is_not_over_its_limit(scale, monkeypatch) -> None:
    def refused() -> int:
        # What the kernel says once the first process of the namespace is dead.
        raise OSError(12, "Cannot allocate memory")

    before = len(list(Path("/proc/self/fd").iterdir()))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", refused)
        assert scale.weigh([os.getpid()], LIMIT) == LIMIT
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert weighed(scale) > LIMIT


def test_whoever_weighs_and_is_killed_says_nothing_of_the_job(scale, monkeypatch) -> None:
    monkeypatch.setattr(keeper, "proportional_memory", lambda pids: os._exit(1))
    assert scale.weigh([os.getpid()], LIMIT) == LIMIT


@pytest.mark.parametrize("fault", ["fork", "measure"])
def test_a_measure_that_fails_for_long_leaves_the_plain_sum(scale, monkeypatch, fault) -> None:
    def refused() -> int:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(keeper, "PATIENCE", 0.2)
    if fault == "fork":
        monkeypatch.setattr(os, "fork", refused)
    else:
        monkeypatch.setattr(keeper, "proportional_memory", lambda pids: os._exit(1))
    assert weighed(scale) == pytest.approx(keeper.resident_memory([os.getpid()]), rel=0.1)
