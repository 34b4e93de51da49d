"""What the server knows of code that it does not import."""

from __future__ import annotations

import asyncio
import inspect
import json
from pathlib import Path

import pytest

from mpsearch.sensitivity import catalog
from mpsearch_api.describing import describe
from mpsearch_api.http.catalogue import Catalogue, Description, SettingInfo


def test_the_description_is_that_of_the_code_itself(description: Description) -> None:
    assert Description.parse(json.dumps(describe())) == description


def test_every_estimator_has_the_settings_of_its_class(description: Description) -> None:
    for entry in catalog.known():
        module, _, name = entry.implementation.partition(":")
        made = getattr(__import__(module, fromlist=[name]), name)
        parameters = dict(inspect.signature(made).parameters)
        assert set(description.settings[entry.name]) == set(parameters)
        for name, info in description.settings[entry.name].items():
            assert info.types, (entry.name, name)
            assert info.refusal(info.default) is None, (entry.name, name)


@pytest.mark.parametrize(
    ("types", "values", "given", "fits"),
    [
        (["int"], None, 3, True),
        (["int"], None, 3.5, False),
        (["int"], None, True, False),
        (["float"], None, 3, True),
        (["bool"], None, True, True),
        (["bool"], None, 1, False),
        (["str"], ["a", "b"], "a", True),
        (["str"], ["a", "b"], "c", False),
        (["int", "str"], ["auto"], 5, True),
        (["int", "str"], ["auto"], "auto", True),
        (["int", "str"], ["auto"], "other", False),
        (["float", "None"], None, None, True),
        ([], None, 1, False),
    ],
)
def test_settings_are_checked_by_type_and_listed_values(
    types: list, values: list | None, given: object, fits: bool
) -> None:
    assert (SettingInfo(types=types, values=values).refusal(given) is None) is fits


def test_a_restarted_server_has_its_catalogue_at_once(
    tmp_path: Path, description: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "catalogue.json"
    calls = []

    async def described() -> bytes:
        calls.append(1)
        return json.dumps(describe()).encode()

    monkeypatch.setattr("mpsearch_api.http.catalogue._described", described)
    for _ in range(2):
        assert asyncio.run(Catalogue(kept=kept).get()) == description
    assert len(calls) == 1
    stale = json.loads(kept.read_text())
    stale["versions"]["mpsearch"] = "0.0.0"
    for broken in (json.dumps(stale), "{", "[]", json.dumps({"versions": stale["versions"]})):
        kept.write_text(broken)
        assert asyncio.run(Catalogue(kept=kept).get()) == description
    assert len(calls) == 5


def test_a_process_that_fails_is_a_reason_and_may_be_tried_again(monkeypatch) -> None:
    outcomes: list[object] = []

    async def described() -> bytes:
        if not outcomes:
            outcomes.append(1)
            raise RuntimeError("no torch")
        return json.dumps(describe()).encode()

    monkeypatch.setattr("mpsearch_api.http.catalogue._described", described)

    async def tried() -> None:
        catalogue = Catalogue()
        with pytest.raises(RuntimeError):
            await catalogue.get()
        assert catalogue.reason() == "no torch"
        await catalogue.get()
        assert catalogue.reason() is None

    asyncio.run(tried())
