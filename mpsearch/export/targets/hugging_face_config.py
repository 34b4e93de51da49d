"""Hugging Face: the `quantization_config` of a config.json, in the form of compressed-tensors."""

from __future__ import annotations

import json

from mpsearch.export.protocol import Request
from mpsearch.export.targets.config_groups import config_groups, options_of

__all__ = ["parse", "render"]


def render(request: Request) -> str:
    """Write the object that goes into config.json as `quantization_config`."""
    config = config_groups(request.layers, quantization_status="initialized")
    return json.dumps({"quantization_config": config}, indent=1) + "\n"


def parse(text: str) -> dict[str, str]:
    """Read layer -> option; a whole config.json does as well."""
    config = json.loads(text)["quantization_config"]
    return options_of(config["config_groups"], config["ignore"])
