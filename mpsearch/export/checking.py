"""Whether a target can express an allocation, and a message that says what stands in the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mpsearch.errors import InputError
from mpsearch.export.protocol import Target
from mpsearch.formats import Option, parse_option

__all__ = ["Objection", "check_expressible", "objections"]

_SHOWN = 12
FLOAT = parse_option("float")


@dataclass(frozen=True)
class Objection:
    """A layer whose option a target cannot express.

    Attributes:
        layer: Name of the layer.
        option: Its option.
        reason: Why not.
        nearest: Options that the target can express there, the closest first.
    """

    layer: str
    option: str
    reason: str
    nearest: tuple[str, ...]


def objections(
    target: Target, layers: Mapping[str, Option], kinds: Mapping[str, str] | None = None
) -> list[Objection]:
    """Find what a target cannot express.

    Args:
        target: The target.
        layers: Layer -> option.
        kinds: Layer -> kind of operation, where the model is known.

    Returns:
        One entry per layer that stands in the way, in the order of the layers.
    """
    found = {}
    for layer, option in layers.items():
        kind = (kinds or {}).get(layer)
        if kind and target.kinds is not None and kind not in target.kinds and not option.is_float:
            words = ", ".join(sorted(target.kinds))
            reason = f"it is a {kind}, and the target has words for {words}"
            found[layer] = Objection(layer, option.name, reason, ("float",))
        elif not target.expresses(option):
            nearest = tuple(target.nearest(option))
            found[layer] = Objection(layer, option.name, "no words for this option", nearest)
    for members in _fused(target, layers):
        options = {layers[name].key: layers[name].name for name in members}
        if len(options) > 1:
            best = max((layers[name] for name in members), key=_bits)
            reason = f"it is fused with {', '.join(n for n in members)}, which need one option"
            for name in members:
                if name not in found and layers[name].key != best.key:
                    found[name] = Objection(name, layers[name].name, reason, (best.name,))
    return [found[layer] for layer in layers if layer in found]


def check_expressible(
    target: Target, layers: Mapping[str, Option], kinds: Mapping[str, str] | None = None
) -> None:
    """Raise where a target cannot express an allocation.

    Args:
        target: The target.
        layers: Layer -> option.
        kinds: Layer -> kind of operation, where the model is known.

    Raises:
        InputError: Names the layers, their options, and the nearest that can be expressed.
    """
    found = objections(target, layers, kinds)
    if not found:
        return
    lines = [f"{target.name} cannot express {len(found)} of {len(layers)} layers:"]
    for each in found[:_SHOWN]:
        instead = f"; nearest: {', '.join(each.nearest)}" if each.nearest else ""
        lines.append(f"  {each.layer}: {each.option} ({each.reason}){instead}")
    if len(found) > _SHOWN:
        lines.append(f"  … and {len(found) - _SHOWN} more")
    lines.append(
        f"search again with --target {target.name}, or export to a target that can "
        "(mpsearch export --list)"
    )
    raise InputError("\n".join(lines))


def _fused(target: Target, layers: Mapping[str, Option]) -> list[Sequence[str]]:
    """Layers of one parent whose last names a target joins."""
    found: list[Sequence[str]] = []
    for last in target.fused:
        parents = {name.rpartition(".")[0] for name in layers if name.rpartition(".")[2] in last}
        for parent in sorted(parents):
            prefix = f"{parent}." if parent else ""
            members = [f"{prefix}{each}" for each in last if f"{prefix}{each}" in layers]
            if len(members) > 1:
                found.append(members)
    return found


def _bits(option: Option) -> float:
    return option.weight.bits + option.activation.bits / 64
