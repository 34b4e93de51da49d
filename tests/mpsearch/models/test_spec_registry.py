from __future__ import annotations

import pytest

from mpsearch.errors import InputError
from mpsearch.models.spec_registry import SpecRegistry


def test_loaders_are_found_by_scheme_and_by_the_suffix_of_a_file() -> None:
    registry: SpecRegistry = SpecRegistry()

    @registry.scheme("hub")
    def hub() -> str:
        return "hub"

    @registry.file_type(".bin")
    def binary() -> str:
        return "binary"

    assert registry.of_scheme("hub") is hub
    assert registry.of_scheme("Hub") is None
    assert registry.of_file("/a.b/C.BIN") is binary
    assert registry.of_file("hub") is None
    assert (registry.schemes, registry.file_types) == (["hub"], [".bin"])


@pytest.mark.parametrize("kind", ["scheme", "file_type"])
def test_a_name_is_registered_once(kind: str) -> None:
    registry: SpecRegistry = SpecRegistry()
    getattr(registry, kind)("x")(len)
    with pytest.raises(InputError, match="'x' is registered already"):
        getattr(registry, kind)("x")
