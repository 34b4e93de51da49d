"""Targets by name: which layers have to take the same option there, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mpsearch.errors import UnknownNameError

__all__ = ["Rule", "TargetProfile", "known_targets", "target_profile"]

Rule = Literal["fused_projections", "experts", "residual_additions"]


@dataclass(frozen=True)
class TargetProfile:
    """What a way of running models asks of the options of its layers.

    Attributes:
        name: The name.
        rules: What layers are grouped by (see `mpsearch.models.groups`).
        reason: Why, for people.
    """

    name: str
    rules: frozenset[Rule]
    reason: str


_TARGETS = {
    target.name: target
    for target in (
        TargetProfile(
            "independent",
            frozenset(),
            "every layer has kernels of its own",
        ),
        TargetProfile(
            "fused-llm",
            frozenset({"fused_projections", "experts"}),
            "servers of language models join the projections of one input (query, key and value; "
            "gate and up) into one matrix and the experts of a layer into one bank, each of one "
            "format; vLLM refuses checkpoints that mix schemes there",
        ),
        TargetProfile(
            "integer-only",
            frozenset({"residual_additions"}),
            "integer additions take both operands in one format (Jacob et al., 2018, "
            "'Quantization and Training of Neural Networks for Efficient "
            "Integer-Arithmetic-Only Inference', appendix A.2), so the layers that produce the "
            "operands of a residual addition go together",
        ),
    )
}


def known_targets() -> list[TargetProfile]:
    """List the target profiles.

    Returns:
        The profiles.
    """
    return list(_TARGETS.values())


def target_profile(name: str) -> TargetProfile:
    """Find a target profile.

    Args:
        name: Its name.

    Returns:
        The profile.

    Raises:
        UnknownNameError: There is none of this name.
    """
    if name not in _TARGETS:
        raise UnknownNameError("target profile", name, _TARGETS)
    return _TARGETS[name]
