"""`synthetic`: inputs made from the model alone, for when no data can be had."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mpsearch.errors import DataError, InputError
from mpsearch.models.data_specs import DataRequest, data_scheme, whole_number
from mpsearch.models.dataset import DataSet
from mpsearch.models.named import InputForm, NamedModel
from mpsearch.models.running import evaluation_mode, first_output, forward

__all__ = ["distilled_inputs", "load_synthetic", "random_inputs"]

SETTINGS = {"count", "shape", "steps", "batch"}
LEARNING_RATE = 0.1
MAX_VALUES = 2**28


@data_scheme("synthetic")
def load_synthetic(request: DataRequest) -> DataSet:
    """Make inputs from the model: by its BatchNorm statistics, or random tokens, or noise.

    Args:
        request: The model and seed, and the settings `count` (64), `shape` (such as 3x32x32, where
            the model does not say what it takes), `steps` of the distillation (100) and `batch`.

    Returns:
        Inputs without targets; the name and a note say that no data was used.

    Raises:
        InputError: The model is not known here, or the shape of its inputs.
    """
    request.check_settings(SETTINGS)
    if request.model is None:
        raise InputError("synthetic data is made from a model, and none is given beside it")
    form = _form(request, request.model)
    count = whole_number(request, "count", 64, 100_000)
    steps = whole_number(request, "steps", 100, 100_000)
    values = count
    for size in form.shape:
        values *= size
    if values > MAX_VALUES:
        raise InputError(f"{count} inputs of {form.shape} are {values:,} values; at most 2^28")
    module = request.model.module
    device = next((each.device for each in module.parameters()), torch.device("cpu"))
    inputs = random_inputs(form, count, request.seed).to(device)
    kind = "random tokens" if form.vocabulary is not None else "Gaussian noise"
    batch = whole_number(request, "batch", 32, 65_536)
    first_output(request.model, inputs[:1], min(batch, count))
    if form.vocabulary is None and _statistics(module):
        parts = [distilled_inputs(module, part, steps) for part in torch.split(inputs, batch)]
        inputs, kind = torch.cat(parts), "BatchNorm statistics"
    return DataSet(
        f"synthetic ({kind}, data-free)",
        inputs,
        batch_size=batch,
        notes=(
            f"the data is synthetic, made from the model alone ({kind}): scores and measurements "
            "are data-free and say nothing of accuracy on real inputs",
        ),
    )


def random_inputs(form: InputForm, count: int, seed: int) -> Tensor:
    """Draw uniform token ids, or standard normal values.

    Args:
        form: What one input looks like.
        count: How many.
        seed: Seed.

    Returns:
        Inputs `[count, ...]`, int64 or float32, on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    size = (count, *form.shape)
    if form.vocabulary is not None:
        return torch.randint(form.vocabulary, size, generator=generator)
    return torch.randn(size, generator=generator)


def distilled_inputs(model: nn.Module, inputs: Tensor, steps: int) -> Tensor:
    """Change inputs until the statistics in front of every BatchNorm match the stored ones.

    Minimises, by Adam, the sum over BatchNorm layers of the squared distances of the channels'
    means and standard deviations from the running ones (Cai et al., 2020, "ZeroQ: A Novel Zero
    Shot Quantization Framework", section 3.1), each layer weighted by 1 / (channels · its mean
    running variance) so that wide or loud layers do not drown the rest.

    Args:
        model: The model; unchanged afterwards.
        inputs: Where to start, float32 `[batch, ...]`.
        steps: Steps of Adam.

    Returns:
        Inputs of the same shape; the best that were met.
    """
    layers = _statistics(model)
    needed = [parameter.requires_grad for parameter in model.parameters()]
    current = inputs.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([current], lr=LEARNING_RATE)
    best, least = inputs, float("inf")
    met: list[Tensor] = []
    handles = [layer.register_forward_pre_hook(_Distance(met)) for layer in layers]
    try:
        model.requires_grad_(False)
        with evaluation_mode(model), torch.enable_grad():
            for _ in range(steps + 1):
                met.clear()
                forward(model, current)
                distance = torch.stack(met).sum()
                if distance.item() < least:
                    best, least = current.detach().clone(), distance.item()
                optimizer.zero_grad()
                distance.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
        for parameter, flag in zip(model.parameters(), needed, strict=True):
            parameter.requires_grad_(flag)
    return best


@dataclass(frozen=True)
class _Distance:
    """Pre-hook of a BatchNorm layer that notes how far its input is from the running statistics."""

    met: list[Tensor]

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        mean, variance = layer.running_mean, layer.running_var
        assert isinstance(mean, Tensor)
        assert isinstance(variance, Tensor)
        channels = args[0].transpose(0, 1).flatten(1)
        deviation = (channels.var(1, unbiased=False) + layer.eps).sqrt()  # type: ignore[operator]
        wanted = (variance + layer.eps).sqrt()  # type: ignore[operator]
        distance = (channels.mean(1) - mean).square() + (deviation - wanted).square()
        self.met.append(distance.mean() / (variance.mean() + layer.eps))  # type: ignore[operator]


def _statistics(model: nn.Module) -> list[nn.Module]:
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and isinstance(module.running_var, Tensor)
    ]


def _form(request: DataRequest, model: NamedModel) -> InputForm:
    text = request.settings.get("shape")
    if text is None:
        if model.inputs is None:
            raise InputError(
                f"it is not known what {model.name} takes; say it: synthetic?shape=3x224x224"
            )
        return model.inputs
    sizes = text.split("x")
    if not all(s.isascii() and s.isdigit() and 0 < int(s[:12]) <= MAX_VALUES for s in sizes):
        raise DataError(f"data {request.text!r}: shape={text} is not like 3x224x224")
    vocabulary = model.inputs.vocabulary if model.inputs else None
    return InputForm(tuple(map(int, sizes)), vocabulary)
