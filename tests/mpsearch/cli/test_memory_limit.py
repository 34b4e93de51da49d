from __future__ import annotations

import json

import pytest

from mpsearch.cli import arguments
from mpsearch.errors import InputError


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("2GiB", 2 * 2**30),
        ("500MB", 500_000_000),
        ("1.5 KiB", 1536),
        ("4096", 4096),
        ("1e6", 1_000_000),
        ("80B", 80),
    ],
)
def test_amounts_of_memory_are_read_with_their_unit(text, amount):
    assert arguments.memory_of(text) == amount


def test_no_limit_stays_no_limit():
    assert arguments.memory_of(None) is None


@pytest.mark.parametrize("text", ["", "GiB", "2GB/s", "two", "-1MB", "0", "nan", "inf", "3ms"])
def test_what_is_no_amount_of_memory_is_refused_with_the_text(text):
    with pytest.raises(InputError, match=r"--memory-limit .*such as 2GiB"):
        arguments.memory_of(text)


SCORING = ["digits-resnet", "--data", "digits", "--samples", "6", "--options", "w4"]
SCORING += ["--estimator", "gradient_deviation", "--memory-limit", "100B"]


def test_the_limit_reaches_a_profile(run):
    found = run("profile", *SCORING, "--json")
    assert found.code == 0
    assert any("one input at a time" in text for text in found.json["warnings"])


def test_the_limit_reaches_a_search(run, tmp_path):
    found = run("search", *SCORING, "--budget", "average_bits=32", "--no-verify", "--out", tmp_path)
    assert found.code == 0
    profile = json.loads((tmp_path / "profile.json").read_text())
    assert any("one input at a time" in text for text in profile["warnings"])


def test_a_wrong_limit_ends_with_bad_usage_before_the_model_is_loaded(run):
    found = run("profile", "no-such-model", "--data", "digits", "--memory-limit", "lots")
    assert found.code == 2
    assert "--memory-limit 'lots'" in found.message


def test_a_saved_profile_takes_no_limit(run, tmp_path):
    found = run(
        "search",
        "--profile",
        tmp_path / "p.json",
        "--costs",
        tmp_path / "c.json",
        "--budget",
        "bops=3%",
        "--memory-limit",
        "1GiB",
    )
    assert found.code == 2
    assert "--memory-limit" in found.message
