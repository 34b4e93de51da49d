"""Keeping freed memory for the next tensor while models run over and over.

Every pass through a model takes the memory of its activations and gives it back. glibc's malloc
returns it to the kernel, blocks from 32 MiB always and the end of its heap whenever 64 MiB of it
are free (mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD at their dynamic maxima), and the kernel
hands it out again page by page, zeroed. On large activations that takes longer than the
arithmetic. While a context of `freed_memory_kept` is open, malloc keeps what is freed, in blocks
below 128 MiB.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from mpsearch.process_wide import ProcessWide

__all__ = ["freed_memory_kept"]

# Numbers of parameters in glibc's malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3

# A block that was aligned may be too small for the next of its own size, in glibc before 2.38, and
# a few of them lie idle then. Blocks of which that would be a loss still come from the kernel.
_KEEPING = {_MMAP_THRESHOLD: 128 * 2**20, _TRIM_THRESHOLD: -1}
# Where the thresholds arrive by themselves once a block of 32 MiB was freed; having been set, they
# no longer move, so their beginnings (128 KiB) would not do.
_USUAL = {_MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 64 * 2**20}


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let malloc keep freed memory, for the whole process, until the last such context is left.

    Then what is free goes back to the kernel, and malloc's thresholds are those that a process
    with large tensors has anyway. Nothing happens where the C library is not glibc, or where the
    environment sets malloc's parameters itself (`MALLOC_TRIM_THRESHOLD_=...`, `GLIBC_TUNABLES`).

    Yields:
        Nothing.
    """
    with _KEPT:
        yield


@contextmanager
def _kept() -> Iterator[None]:
    library = _glibc()
    if library is None:
        yield
        return
    _set(library, _KEEPING)
    try:
        yield
    finally:
        _set(library, _USUAL)
        library.malloc_trim(0)


_KEPT = ProcessWide(_kept)


@cache
def _glibc() -> ctypes.CDLL | None:
    """Find glibc where this process uses it and nobody has set its parameters."""
    library = ctypes.CDLL(None) if os.name == "posix" else None
    if not hasattr(library, "gnu_get_libc_version"):
        return None
    asked = any(name.startswith("MALLOC_") and name.endswith("_") for name in os.environ)
    return None if asked or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") else library


def _set(library: ctypes.CDLL, parameters: dict[int, int]) -> None:
    for parameter, value in parameters.items():
        library.mallopt(parameter, value)
