"""Quantized weights, kept for the next time under a limit of memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from torch import Tensor

from mpsearch.errors import InputError

__all__ = ["DEFAULT_MEMORY_LIMIT", "WeightCache"]

DEFAULT_MEMORY_LIMIT = 2**30
"""Bytes of quantized weights that are kept by default: five options of a model of 50 million
float32 weights."""


class WeightCache:
    """Tensors by key; those that were not asked for longest are dropped first."""

    def __init__(self, memory_limit: int = DEFAULT_MEMORY_LIMIT) -> None:
        """Start empty.

        Args:
            memory_limit: Most bytes to keep; 0 keeps nothing.

        Raises:
            InputError: The limit is negative.
        """
        if memory_limit < 0:
            raise InputError(f"memory limit {memory_limit} B is negative; 0 keeps nothing")
        self._limit = memory_limit
        self._entries: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._bytes = 0

    @property
    def memory(self) -> int:
        """Bytes held."""
        return self._bytes

    def __len__(self) -> int:
        """Number of tensors held."""
        return len(self._entries)

    def get(self, key: Hashable) -> Tensor | None:
        """Give a tensor that was kept.

        Args:
            key: What it was kept under.

        Returns:
            The tensor, or None if it never was or is no longer kept.
        """
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Keep a tensor, dropping others if it would not fit; one beyond the limit is not kept.

        Args:
            key: What to keep it under.
            tensor: The tensor.
        """
        size = tensor.numel() * tensor.element_size()
        if size > self._limit:
            return
        previous = self._entries.pop(key, None)
        if previous is not None:
            self._bytes -= previous.numel() * previous.element_size()
        self._entries[key] = tensor
        self._bytes += size
        while self._bytes > self._limit:
            _, dropped = self._entries.popitem(last=False)
            self._bytes -= dropped.numel() * dropped.element_size()
