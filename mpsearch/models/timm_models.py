"""`timm:NAME[@WEIGHTS.safetensors]`: the image networks of timm (PyTorch Image Models)."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

import torch
from torch import nn

from mpsearch.errors import DependencyError, UnknownNameError
from mpsearch.models.named import InputForm, NamedModel
from mpsearch.models.specs import ModelSpec, SpecPolicy, scheme
from mpsearch.models.weights_file import load_weights

__all__ = ["load_timm"]


@scheme("timm")
def load_timm(spec: ModelSpec, policy: SpecPolicy) -> NamedModel:
    """Build a network of timm; nothing is downloaded.

    Args:
        spec: Name, and the weights to load. Without weights they are random, from seed 0, and the
            model says so.
        policy: Has to allow paths for weights.

    Returns:
        The model.

    Raises:
        DependencyError: timm is not installed.
        UnknownNameError: timm has no network of this name.
    """
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise DependencyError(
            f"{spec.text} needs timm, which is not installed; run: pip install timm"
        ) from error
    # Names of other forms, such as hf-hub:…, would be downloaded.
    known = {*timm.list_models(), *timm.list_models(pretrained=True)}
    if spec.body not in known:
        near = difflib.get_close_matches(spec.body, known, n=8, cutoff=0.5)
        hint = f"timm.list_models() shows all {len(known):,}"
        raise UnknownNameError("timm network", spec.body, near, hint=hint)
    weights = None if spec.weights is None else policy.path(spec.weights)
    # Weights of a fixed seed: a profile then belongs to the model that the same spec makes again.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: nn.Module = timm.create_model(spec.body, pretrained=False)
    published: dict[str, Any] = dict(getattr(module, "pretrained_cfg", None) or {})
    notes: tuple[str, ...] = ()
    if weights is None:
        notes = (
            f"{spec.text} has random weights (seed 0), good for speed and sizes, not for quality; "
            f"give trained ones: {spec.text}@WEIGHTS.safetensors",
        )
    else:
        load_weights(module, weights)
    return NamedModel(spec.text, module, _inputs(published), notes)


def _inputs(published: dict[str, Any]) -> InputForm | None:
    size = published.get("input_size")
    if isinstance(size, (tuple, list)) and len(size) == 3 and all(type(n) is int for n in size):
        return InputForm(tuple(size))
    return None
