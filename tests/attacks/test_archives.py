from __future__ import annotations

import io
import re
import zipfile

import archive_files
import pytest
import torch
from refusal import check_cheap, refusal_of
from safetensors_files import RunsCode

from mpsearch.models.registry import as_model
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
