"""A profile and costs of the bundled example, made once."""

from __future__ import annotations

import pytest

import mpsearch as mp

MENU = ["w2a8", "w3a8", "w4a8", "w6a8", "w8a8"]


@pytest.fixture(scope="session")
def digits_profile() -> mp.Profile:
    return mp.profile("digits-resnet", "digits", MENU, "measured_loss")


@pytest.fixture(scope="session")
def digits_costs() -> mp.Costs:
    return mp.price("digits-resnet", "digits", MENU)
