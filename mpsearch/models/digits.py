"""The bundled example: a small ResNet and the handwritten digits it was trained on.

The images are the 1,797 scans of 8 x 8 pixels that scikit-learn ships as `load_digits` (from
the UCI repository's "Optical Recognition of Handwritten Digits", Alpaydin and Kaynak, 1998).
They are split once and for all, 60 % to train and to score layers on, 40 % held out for
verification, by a seeded permutation.
`examples/train_digits_resnet.py` trains the network and writes the weights shipped here.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
import torch
from torch import nn

from mpsearch.errors import DependencyError
from mpsearch.models.data_specs import DataRequest, data_scheme
from mpsearch.models.dataset import DataSet
from mpsearch.models.named import InputForm
from mpsearch.models.specs import architecture
from mpsearch.models.weights_file import load_weights

__all__ = ["BasicBlock", "DigitsResNet", "digits", "digits_resnet"]

TRAIN_IMAGES = 1078
SPLIT_SEED = 0


class BasicBlock(nn.Module):
    """Residual block of two 3 x 3 convolutions (He et al., 2016, "Deep residual learning")."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        """Build the block.

        Args:
            channels_in: Channels of the input.
            channels_out: Channels of the output.
            stride: Stride of the first convolution; the shortcut is a strided 1 x 1 convolution
                where shape changes, and the identity elsewhere.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU()
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images `[batch, channels_in, h, w]` to `[batch, channels_out, h/stride, w/stride]`.

        Args:
            x: Input features.

        Returns:
            Output features.
        """
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        summed: torch.Tensor = self.relu(out + self.downsample(x))
        return summed


class DigitsResNet(nn.Module):
    """ResNet for 8 x 8 grey images: three stages of one block, 16 to 64 channels, 10 layers."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        """Build the network with random weights.

        Args:
            width: Channels of the first stage; the next ones have twice and four times as many.
            classes: Number of output classes.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(BasicBlock(width, width, 1))
        self.layer2 = nn.Sequential(BasicBlock(width, 2 * width, 2))
        self.layer3 = nn.Sequential(BasicBlock(2 * width, 4 * width, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify images.

        Args:
            x: Images `[batch, 1, 8, 8]`, values in [0, 1].

        Returns:
            Logits `[batch, classes]`.
        """
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: torch.Tensor = self.fc(self.pool(x).flatten(1))
        return logits


@architecture("digits-resnet", InputForm((1, 8, 8)))
def digits_resnet() -> DigitsResNet:
    """Load the trained example network in evaluation mode.

    Returns:
        The network with the weights shipped in this package.
    """
    model = DigitsResNet()
    packaged = resources.files("mpsearch.models") / "weights" / "digits-resnet.safetensors"
    with resources.as_file(packaged) as path:
        load_weights(model, path)
    return model.eval()


@data_scheme("digits")
def _digits_spec(request: DataRequest) -> DataSet:
    request.check_settings(())
    return digits()


def digits() -> DataSet:
    """Load the digit images with their fixed split: 1,078 to score on, 719 held out.

    Returns:
        Images `[n, 1, 8, 8]` float32 in [0, 1] with integer labels.

    Raises:
        DependencyError: scikit-learn, which ships the images, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DependencyError(
            "the data set 'digits' ships with scikit-learn, which is not installed; "
            "run: pip install 'mpsearch[examples]'"
        ) from error
    images, labels = load_digits(return_X_y=True)
    # RandomState's stream is frozen by numpy, so the split is the same for every version.
    order = np.random.RandomState(SPLIT_SEED).permutation(len(images))
    x = torch.tensor(images[order] / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.tensor(labels[order], dtype=torch.int64)
    cut = TRAIN_IMAGES
    return DataSet("digits", x[:cut], y[:cut], x[cut:], y[cut:])
