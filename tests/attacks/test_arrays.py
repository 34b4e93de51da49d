from __future__ import annotations

import re

import array_files
import pytest
from refusal import check_cheap, refusal_of

from mpsearch.models.registry import as_data


@pytest.mark.parametrize("name", array_files.ATTACKS)
def test_a_crafted_file_is_refused_cheaply_and_without_a_trace(name: str, tmp_path) -> None:
    make, words = array_files.ATTACKS[name]
    path = tmp_path / "evil.npz"
    make(path)
    refusal = refusal_of(lambda file: as_data(str(file)), path)
    check_cheap(refusal)
    assert re.search(words, refusal.words), refusal.words
    assert not (tmp_path / "canary").exists()
