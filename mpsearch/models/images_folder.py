"""`images:FOLDER` and `images:FILE.zip`: images with labels, one sub-folder per class."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mpsearch.errors import DataError, DependencyError, InputError
from mpsearch.models.data_specs import DataRequest, data_scheme, whole_number
from mpsearch.models.dataset import DataSet
from mpsearch.models.image_files import image_files, labels_of

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["load_images"]

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
MAX_VALUES = 2**30
MAX_PIXELS = 64 * 2**20
SETTINGS = {"size", "resize", "mean", "std", "channels", "batch"}


@data_scheme("images")
def load_images(request: DataRequest) -> DataSet:
    """Load images, resized by their shorter side and cropped in the centre.

    A pixel value v of 0 to 255 becomes (v / 255 - mean) / std. Labels are the places of the
    sub-folders in alphabetical order; a folder without sub-folders gives images without labels. A
    sub-folder whose name is a whole number gives that number, if all do.

    Args:
        request: The folder or ZIP file, and the settings `size` (of the square crop, 224 unless
            the model says otherwise), `resize` (shorter side before the crop, `size` by default),
            `mean` and `std` (one number or one per channel, separated by commas; 0 and 1 by
            default), `channels` (3 or 1) and `batch`.

    Returns:
        Images float32 `[n, channels, size, size]` with int64 labels.

    Raises:
        DependencyError: Pillow is not installed.
        InputError: A setting is beyond its range.
        DataError: No images, too many, or one that cannot be read.
    """
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            "images need Pillow, which is not installed; run: pip install 'mpsearch[vision]'"
        ) from error
    request.check_settings(SETTINGS)
    form = request.model.inputs.shape if request.model and request.model.inputs else ()
    usual_channels, usual_size = (form[0], form[1]) if len(form) == 3 else (3, 224)
    channels = whole_number(request, "channels", usual_channels, 3)
    size = whole_number(request, "size", usual_size, 4096)
    resize = whole_number(request, "resize", size, 8192)
    if channels == 2 or resize < size:
        raise InputError(f"data {request.text!r}: channels are 1 or 3, and resize >= size")
    mean, std = (_per_channel(request, name, channels) for name in ("mean", "std"))
    with image_files(request.path) as files:
        if len(files) * channels * size * size > MAX_VALUES:
            raise DataError(f"{len(files)} images of {size} x {size} are too many for memory")
        labels = labels_of(files)
        inputs = torch.empty(len(files), channels, size, size)
        for row, each in enumerate(files):
            with each.open() as file, _opened(each.name, file) as image:
                inputs[row] = _pixels(image, each.name, channels, size, resize)
    inputs = (inputs - mean) / std
    targets = None if labels is None else torch.tensor(labels)
    return DataSet(
        request.body, inputs, targets, batch_size=whole_number(request, "batch", 32, 65_536)
    )


def _per_channel(request: DataRequest, name: str, channels: int) -> Tensor:
    text = request.settings.get(name, "1" if name == "std" else "0")
    try:
        values = [float(each) for each in text.split(",")]
    except ValueError as error:
        raise InputError(f"data {request.text!r}: {name}={text} is not made of numbers") from error
    tensor = torch.tensor(values * (channels if len(values) == 1 else 1))
    if len(tensor) != channels or not torch.isfinite(tensor).all():
        raise InputError(f"data {request.text!r}: {name} needs 1 or {channels} finite numbers")
    if name == "std" and bool((tensor <= 0).any()):
        raise InputError(f"data {request.text!r}: std={text} must be positive")
    return tensor[:, None, None]


def _opened(name: str, file: IO[bytes]) -> Image.Image:
    from PIL import Image

    try:
        image = Image.open(file, formats=FORMATS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} is no image that can be read: {str(error)[:120]}") from error
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{name} has {image.width} x {image.height} pixels, too many to unpack")
    return image


def _pixels(image: Image.Image, name: str, channels: int, size: int, resize: int) -> Tensor:
    from PIL.Image import Resampling

    try:
        shown = image.convert("RGB" if channels == 3 else "L")
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{name} cannot be unpacked: {str(error)[:120]}") from error
    scale = resize / min(shown.size)
    width, height = (max(size, round(side * scale)) for side in shown.size)
    shown = shown.resize((width, height), Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    shown = shown.crop((left, top, left + size, top + size))
    values = np.asarray(shown, dtype=np.float32).reshape(size, size, channels) / 255.0
    return torch.from_numpy(values.transpose(2, 0, 1).copy())
