"""llm-compressor: a recipe with one QuantizationModifier. JSON is YAML, so the recipe is both."""

from __future__ import annotations

import json
from typing import Any

from mpsearch.export.protocol import Request
from mpsearch.export.targets.config_groups import groups_of, options_of

__all__ = ["parse", "render"]


def render(request: Request) -> str:
    """Write the recipe."""
    groups, ignored = groups_of(request.layers)
    modifier: dict[str, Any] = {"config_groups": groups, "ignore": ignored}
    recipe = {"quant_stage": {"quant_modifiers": {"QuantizationModifier": modifier}}}
    return json.dumps(recipe, indent=1) + "\n"


def parse(text: str) -> dict[str, str]:
    """Read layer -> option."""
    modifier = json.loads(text)["quant_stage"]["quant_modifiers"]["QuantizationModifier"]
    return options_of(modifier["config_groups"], modifier["ignore"])
