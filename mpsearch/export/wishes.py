"""What a target asks of a search: layers that stay float, layers that go together."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from mpsearch.export.catalog import find_target
from mpsearch.menu import Wishes
from mpsearch.models.dataset import Batch
from mpsearch.models.layers import find_layers

__all__ = ["for_target"]


def for_target(name: str, model: nn.Module, batch: Batch, wishes: Wishes) -> Wishes:
    """Add what a target asks to what the caller wants; the caller's groups come first.

    Args:
        name: Name of the target.
        model: The model.
        batch: A batch that it accepts.
        wishes: What the caller wants.

    Returns:
        The wishes, with layers of kinds that the target has no words for skipped, and layers that
        it fuses proposed as groups.
    """
    target = find_target(name)
    layers = find_layers(model, batch).layers
    kinds = target.kinds
    skipped = [layer.name for layer in layers if kinds is not None and layer.kind not in kinds]
    grouped = {name for group in wishes.proposed for name in group} | set(skipped)
    proposed = [tuple(group) for group in wishes.proposed]
    free = [layer.name for layer in layers if layer.name not in grouped]
    for last in target.fused:
        by_parent: dict[str, list[str]] = {}
        for layer in free:
            parent, _, own = layer.rpartition(".")
            if own in last:
                by_parent.setdefault(parent, []).append(layer)
        proposed += [tuple(members) for members in by_parent.values() if len(members) > 1]
    literal = [_literal(layer) for layer in skipped]
    return replace(wishes, skip=[*wishes.skip, *literal], proposed=proposed)


def _literal(layer: str) -> str:
    """Write a name as a pattern that matches nothing else."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in layer)
