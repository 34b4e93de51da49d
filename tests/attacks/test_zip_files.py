from __future__ import annotations

import re

import pytest
import zip_files
from refusal import check_cheap, refusal_of

from mpsearch.models.registry import as_data, as_model
from mpsearch.models.specs import SpecPolicy

TRUSTED = SpecPolicy(allow_paths=True, trusted=True)


@pytest.mark.parametrize("name", zip_files.ATTACKS)
def test_a_crafted_file_of_images_is_refused_cheaply_and_without_a_trace(name, tmp_path) -> None:
    pytest.importorskip("PIL")
    make, words = zip_files.ATTACKS[name]
    path = tmp_path / "evil.zip"
    make(path)
    refusal = refusal_of(lambda file: as_data(f"images:{file}"), path)
    check_cheap(refusal)
    assert re.search(words, refusal.words), refusal.words


@pytest.mark.parametrize("name", zip_files.OF_ANY_KIND)
@pytest.mark.parametrize("suffix", [".npz", ".pt2"])
def test_an_endless_table_of_contents_is_never_read(name: str, suffix: str, tmp_path) -> None:
    make, words = zip_files.OF_ANY_KIND[name]
    path = tmp_path / f"evil{suffix}"
    make(path)
    load = as_data if suffix == ".npz" else as_model
    refusal = refusal_of(lambda file: load(str(file), TRUSTED), path)
    check_cheap(refusal)
    assert re.search(words, refusal.words), refusal.words
