from __future__ import annotations

import copy
import io
import json
import random
import re
import zipfile
from collections.abc import Iterator
from contextlib import suppress

import archive_files
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusal import MUTATIONS, check_cheap, never_hangs, refusal_of
from safetensors_files import RunsCode

from mpsearch.errors import InputError
from mpsearch.models.dataset import DataSet
from mpsearch.models.registry import as_model, check_fit
from mpsearch.models.run_limits import RunLimits
from mpsearch.models.specs import SpecPolicy

TRUSTED = SpecPolicy(allow_paths=True, trusted=True)


@pytest.mark.parametrize("name", archive_files.ATTACKS)
def test_a_crafted_file_is_refused_cheaply_and_without_a_trace(
    name: str, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, words = archive_files.ATTACKS[name]
    path = tmp_path / "evil.pt2"
    make(path)
    refusal = refusal_of(lambda file: as_model(str(file), TRUSTED), path)
    check_cheap(refusal)
    assert re.search(words, refusal.words), refusal.words
    assert not (tmp_path / "canary").exists()


def _mutated(seed: int) -> dict[str, bytes]:
    """Change a few places of the graph or of the table of tensors, or bytes of a weight."""
    draw = random.Random(seed)
    members = archive_files.good()
    for _ in range(draw.randint(1, 3)):
        name = draw.choice([archive_files.GRAPH, archive_files.GRAPH, archive_files.WEIGHTS])
        document = json.loads(members[name])
        holders = list(_holders(document))
        if not holders:
            continue
        holder = draw.choice(holders)
        key = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        kind = draw.randrange(4)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            holder[key] = draw.choice([0, -1, 2**31, 2**63, 10**30, 1e308, "", "x", None, [], {}])
        elif kind == 2:
            other = draw.choice(holders)
            if other:
                holder[key] = copy.deepcopy(
                    draw.choice(list(other.values()) if isinstance(other, dict) else other)
                )
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        members[name] = json.dumps(document).encode()
    return members


def _holders(value: object) -> Iterator[dict | list]:
    if isinstance(value, (dict, list)) and value:
        yield value
        for each in value.values() if isinstance(value, dict) else value:
            yield from _holders(each)


POLICY = SpecPolicy(allow_paths=True, trusted=True, limits=RunLimits(2**28, 1e10, 10_000, 4.0))


@pytest.mark.slow
@settings(max_examples=MUTATIONS, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_a_mutated_archive_is_refused_or_loads_finite_weights_and_runs(
    tmp_path_factory, seed: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.pt2"
    archive_files.write_archive(path, _mutated(seed))
    with never_hangs(), suppress(InputError):
        named = as_model(str(path), POLICY)
        assert all(torch.isfinite(t).all() for t in named.module.state_dict().values())
        check_fit(named, DataSet("ones", torch.ones(2, 3), batch_size=1))


def test_mutations_of_archives_meet_both_refusal_and_acceptance(tmp_path) -> None:
    verdicts = set()
    for seed in range(60):
        archive_files.write_archive(tmp_path / "m.pt2", _mutated(seed))
        try:
            as_model(str(tmp_path / "m.pt2"), POLICY)
            verdicts.add("loaded")
        except InputError as error:
            verdicts.add(str(error).removeprefix(str(tmp_path))[:40])
    assert "loaded" in verdicts
    assert len(verdicts) > 4


def test_expressions_and_pickled_sample_inputs_are_never_looked_at(tmp_path) -> None:
    """torch.export.load would run both of them."""
    canary = tmp_path / "canary"
    members = archive_files.good()
    inner = io.BytesIO()
    torch.save({"x": RunsCode(canary)}, inner)
    members["m/data/sample_inputs/model.pt"] = inner.getvalue()
    code = f'__import__("pathlib").Path("{canary}").touch()'.replace('"', '\\"')
    text = members[archive_files.GRAPH].decode()
    text = text.replace('"guards_code": []', f'"guards_code": ["{code}"]')
    assert "__import__" in text
    members[archive_files.GRAPH] = text.encode()
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    module = as_model(str(path), TRUSTED).module
    assert module(torch.zeros(2, 3)).shape == (2, 2)
    assert not canary.exists()
