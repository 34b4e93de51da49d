"""What a folder of Hugging Face's format may hold before transformers is let near it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpsearch.errors import ModelError
from mpsearch.models.json_file import read_json_object
from mpsearch.models.safetensors_header import read_header

__all__ = ["CheckedFolder", "check_folder"]

INDEX = "model.safetensors.index.json"
MAX_SHARDS = 1000
MAX_NUMBER = 2**31
MAX_LAYERS = 2000
BUILT_IN_KERNELS = {None, "eager", "sdpa", "grouped_mm", "batched_mm"}


@dataclass(frozen=True)
class CheckedFolder:
    """A folder that holds a configuration and weights in safetensors, and nothing that runs.

    Attributes:
        path: The folder.
        config: Its `config.json`.
        weights: Number of values in all of its tensors.
    """

    path: Path
    config: dict[str, Any]
    weights: int


def check_folder(path: Path) -> CheckedFolder:
    """Check a folder's configuration and the headers of its weights.

    Args:
        path: The folder.

    Returns:
        What it holds.

    Raises:
        ModelError: It is no folder, its weights are pickled or missing, or its configuration asks
            for code, another model, kernels or sizes that are not accepted.
    """
    if not path.is_dir():
        raise ModelError(f"{path} is no folder")
    config = read_json_object(path / "config.json")
    for place, key, value in _walk(config):
        reason = _objection(key, value)
        if reason:
            raise ModelError(f"{path / 'config.json'}: {place} {reason}")
    if (path / "adapter_config.json").exists():
        raise ModelError(f"{path} holds an adapter of another model; merge it and save the result")
    shards = list(_shards(path))
    values = 0
    for shard in shards:
        values += sum(math.prod(each.shape) for each in read_header(shard).tensors.values())
    return CheckedFolder(path, config, values)


def _walk(value: object, place: str = "") -> Iterator[tuple[str, str, object]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{place}{key}", key, inner
            yield from _walk(inner, f"{place}{key}.")
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner, place)


def _objection(key: str, value: object) -> str | None:
    if key in {"auto_map", "custom_pipelines"} and value:
        return "names code that comes with the model; such code is never run"
    if key == "quantization_config" and value:
        return "says that the weights are quantized already; give the float model"
    if key == "use_pretrained_backbone" and value:
        return "asks for weights of another model, which would be downloaded"
    if "_implementation" in key and not isinstance(value, dict):
        if value not in BUILT_IN_KERNELS:
            return f"asks for the kernel {value!r}; only built-in ones are used"
    elif type(value) is int and abs(value) >= MAX_NUMBER:
        return f"is {value}, which is beyond any size of a model"
    elif "layers" in key and type(value) is int and value > MAX_LAYERS:
        return f"is {value}; at most {MAX_LAYERS} layers are accepted"
    return None


def _shards(path: Path) -> Iterator[Path]:
    if (path / "model.safetensors").exists():
        yield path / "model.safetensors"
        return
    if not (path / INDEX).exists():
        pickled = sorted(each.name for each in path.glob("*") if each.suffix in {".bin", ".pt"})
        if pickled:
            raise ModelError(
                f"{path} has its weights as {pickled[0]}, a pickle that may run code; save them as "
                "model.safetensors first (save_pretrained does)"
            )
        raise ModelError(f"{path} has neither model.safetensors nor {INDEX}")
    files = read_json_object(path / INDEX).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise ModelError(f"{path / INDEX} has no weight_map of names to files")
    names = sorted(set(files.values()))
    if len(names) > MAX_SHARDS:
        raise ModelError(f"{path / INDEX} names {len(names)} files; at most {MAX_SHARDS}")
    for name in names:
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise ModelError(
                f"{path / INDEX} names {name[:60]!r}, which is no .safetensors file of its folder"
            )
        yield path / name
