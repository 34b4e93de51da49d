"""`torchvision:NAME[@WEIGHTS.safetensors]`: the classification networks of torchvision."""

from __future__ import annotations

import torch
from torch import nn

from mpsearch.errors import DependencyError, UnknownNameError
from mpsearch.models.named import InputForm, NamedModel
from mpsearch.models.specs import ModelSpec, SpecPolicy, scheme
from mpsearch.models.weights_file import load_weights

__all__ = ["load_torchvision"]

USUAL_SIZE = 224


@scheme("torchvision")
def load_torchvision(spec: ModelSpec, policy: SpecPolicy) -> NamedModel:
    """Build a network of torchvision; nothing is downloaded.

    Args:
        spec: Name, and the weights to load. Without weights they are random, from seed 0, and the
            model says so.
        policy: Has to allow paths for weights.

    Returns:
        The model.

    Raises:
        DependencyError: torchvision is not installed.
        UnknownNameError: torchvision has no classification network of this name.
    """
    try:
        from torchvision import models
    except ImportError as error:
        raise DependencyError(
            f"{spec.text} needs torchvision, which is not installed; "
            "run: pip install 'mpsearch[vision]'"
        ) from error
    known = models.list_models(module=models)
    if spec.body not in known:
        raise UnknownNameError("torchvision network", spec.body, known)
    weights = None if spec.weights is None else policy.path(spec.weights)
    size = _image_size(models, spec.body)
    # Weights of a fixed seed: a profile then belongs to the model that the same spec makes again.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: nn.Module = models.get_model(spec.body, weights=None)
    notes: tuple[str, ...] = ()
    if weights is None:
        notes = (
            f"{spec.text} has random weights (seed 0), good for speed and sizes, not for quality; "
            f"give trained ones: {spec.text}@WEIGHTS.safetensors",
        )
    else:
        load_weights(module, weights)
    return NamedModel(spec.text, module, InputForm((3, size, size)), notes)


def _image_size(models: object, name: str) -> int:
    """Ask the published weights what size they were made for."""
    published = list(models.get_model_weights(name))  # type: ignore[attr-defined]
    keywords = getattr(published[0].transforms, "keywords", {}) if published else {}
    size = keywords.get("crop_size", USUAL_SIZE)
    return int(size[0] if isinstance(size, (tuple, list)) else size)
