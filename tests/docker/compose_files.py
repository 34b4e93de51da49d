"""Reading compose files as the engine would, without one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "docker" / "compose.cluster.yaml"
SINGLE = ROOT / "docker" / "compose.yaml"

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}")


def substituted(text: str, given: dict[str, str]) -> str:
    """Put variables in, their defaults where they are not given; a required one raises KeyError."""

    def value(found: re.Match[str]) -> str:
        name = found["name"]
        if given.get(name):
            return given[name]
        if found["kind"] == "-":
            return found["rest"]
        raise KeyError(name)

    return _VARIABLE.sub(value, text)


def services(path: Path) -> dict[str, dict[str, Any]]:
    """The services of a compose file, with every default."""
    required = {"MPSEARCH_SECRETS": "/secrets", "POSTGRES_PASSWORD": "password"}
    found = yaml.safe_load(substituted(path.read_text(), required))
    return dict(found["services"])
