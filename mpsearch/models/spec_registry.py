"""Loaders of specs, by what stands before the colon and by the suffix of files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from mpsearch.errors import InputError

__all__ = ["SpecRegistry"]

Loader = TypeVar("Loader", bound=Callable[..., object])


class SpecRegistry(Generic[Loader]):
    """Loaders that register themselves with a decorator."""

    def __init__(self) -> None:
        """Start with none."""
        self._schemes: dict[str, Loader] = {}
        self._file_types: dict[str, Loader] = {}

    def scheme(self, prefix: str) -> Callable[[Loader], Loader]:
        """Register a loader for specs `PREFIX:…`, as a decorator.

        Args:
            prefix: What stands before the colon.

        Returns:
            The decorator; it returns the loader as it was.
        """
        return self._registering(self._schemes, prefix)

    def file_type(self, suffix: str) -> Callable[[Loader], Loader]:
        """Register a loader for specs that are paths with a suffix, as a decorator.

        Args:
            suffix: Such as `.onnx`.

        Returns:
            The decorator; it returns the loader as it was.
        """
        return self._registering(self._file_types, suffix)

    def of_scheme(self, prefix: str) -> Loader | None:
        """Find the loader of a scheme.

        Args:
            prefix: What stands before the colon.

        Returns:
            The loader, or None.
        """
        return self._schemes.get(prefix)

    def of_file(self, path: str) -> Loader | None:
        """Find the loader of a file by its suffix, in whatever case.

        Args:
            path: The path.

        Returns:
            The loader, or None.
        """
        return self._file_types.get(Path(path).suffix.lower())

    @property
    def schemes(self) -> list[str]:
        """The names of the schemes, in order."""
        return sorted(self._schemes)

    @property
    def file_types(self) -> list[str]:
        """The suffixes of the files, in order."""
        return sorted(self._file_types)

    @staticmethod
    def _registering(table: dict[str, Loader], name: str) -> Callable[[Loader], Loader]:
        if name in table:
            raise InputError(f"{name!r} is registered already")

        def register(loader: Loader) -> Loader:
            table[name] = loader
            return loader

        return register
