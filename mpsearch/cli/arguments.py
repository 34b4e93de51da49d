"""Arguments that several commands share, and what their text means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mpsearch.budgets import parse_budget, parse_bytes
from mpsearch.errors import BudgetError, InputError

__all__ = [
    "BatchOption",
    "BudgetsOption",
    "CacheOption",
    "ClampOption",
    "ContextOption",
    "CostsOption",
    "DataOption",
    "DeviceOption",
    "EstimatorOption",
    "FailIfOption",
    "FixOption",
    "GapOption",
    "GoalOption",
    "GroupOption",
    "GroupsForOption",
    "HardwareOption",
    "JsonOption",
    "LossOption",
    "MaxDropOption",
    "MemoryOption",
    "MethodOption",
    "ModelArgument",
    "NoVerifyOption",
    "OptionsOption",
    "OutOption",
    "ProfileOption",
    "RefineOption",
    "ResourcesOption",
    "SamplesOption",
    "SeedOption",
    "SettingOption",
    "SkipOption",
    "TargetOption",
    "TimeLimitOption",
    "TrustedOption",
    "budgets_of",
    "fixes_of",
    "memory_of",
    "options_of",
    "settings_of",
]

MODEL_HELP = (
    "Model: digits-resnet, efficientnet-lite0, torchvision:NAME[@WEIGHTS.safetensors], "
    "timm:NAME[@WEIGHTS.safetensors], transformers:FOLDER, FILE.onnx, FILE.pt2 (with --trusted), "
    "or package.module:factory (your own code)."
)
DATA_HELP = (
    "Data: digits, FILE.npz, FILE.safetensors, images:FOLDER (or FILE.zip), "
    "text:FILE?tokenizer=FOLDER, synthetic (data-free), or package.module:factory (your own code)."
)
ModelArgument = Annotated[str, typer.Argument(help=MODEL_HELP)]
DataOption = Annotated[str, typer.Option("--data", "-d", help=DATA_HELP, show_default=False)]
SamplesOption = Annotated[
    int | None,
    typer.Option(
        "--samples",
        help="Score on so many inputs, drawn by --seed.",
        min=1,
        show_default="all",
    ),
]
TrustedOption = Annotated[
    bool,
    typer.Option("--trusted", help="You vouch for the .pt2 archive, whose graph is a program."),
]
OptionsOption = Annotated[
    str,
    typer.Option(
        "--options", help="Options a layer may get, separated by commas: w4a8,w8a8,float …"
    ),
]
BudgetsOption = Annotated[
    list[str],
    typer.Option(
        "--budget",
        "-b",
        help="RESOURCE=AMOUNT, may be repeated. AMOUNT: 3MB, 256KiB, 1.2GBOPs (absolute), 0.25x "
        "(of the float32 model), 50% (of the way from the cheapest to the dearest allocation). "
        "Resources: weight_memory, activation_memory, bops, average_bits, with --hardware latency "
        "and energy, and the columns of a cost table.",
        show_default=False,
    ),
]
EstimatorOption = Annotated[
    str, typer.Option("--estimator", "-e", help="How layers are scored; see: mpsearch estimators")
]
SettingOption = Annotated[
    list[str],
    typer.Option(
        "--set", help="A setting of the estimator, such as probes=64.", show_default=False
    ),
]
LossOption = Annotated[
    str | None,
    typer.Option(
        "--loss",
        help="cross_entropy, mse, next_token, kl_to_float …; by default cross_entropy where the "
        "data has targets, else the divergence from the float model.",
        show_default=False,
    ),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        help="Keep finished parts of long measurements here; an interrupted run resumes.",
        show_default=False,
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory-limit",
        help="Most memory to hold beside the model, its quantized weights and the data while "
        "layers are scored: 2GiB, 500MB; batches are made as small as that needs.",
        show_default=False,
    ),
]
HardwareOption = Annotated[
    str | None,
    typer.Option(
        "--hardware",
        help="Device to price for (see: mpsearch hardware), or a device or cost table file.",
        show_default=False,
    ),
]
BatchOption = Annotated[
    int | None,
    typer.Option(
        "--batch",
        help="Inputs processed together, for latency and activations.",
        min=1,
        show_default="1, or the cost table's",
    ),
]
ContextOption = Annotated[
    int, typer.Option("--context", help="Tokens kept in kv_cache_memory.", min=1)
]
ResourcesOption = Annotated[
    str | None,
    typer.Option(
        "--resources", help="Resources to price, separated by commas.", show_default="the usual"
    ),
]
MethodOption = Annotated[str, typer.Option("--solver", help="Solver method.")]
GapOption = Annotated[float, typer.Option("--gap", help="Relative gap to prove.", min=0.0)]
TimeLimitOption = Annotated[
    float | None,
    typer.Option("--time-limit", help="Seconds for the solver.", min=0.0, show_default=False),
]
GroupOption = Annotated[
    list[str],
    typer.Option(
        "--group",
        help="Layers matching this pattern take the same option (wildcards, or re:REGEX).",
        show_default=False,
    ),
]
GroupsForOption = Annotated[
    str | None,
    typer.Option(
        "--groups-for",
        help="Group the layers that this target makes share an option: independent, fused-llm, "
        "integer-only. --group, --fix and --skip take layers out of such a group.",
        show_default="independent",
    ),
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="Offer only what this export target can run (see: mpsearch export --list); layers it "
        "has no words for stay float, and layers that it fuses take one option.",
        show_default=False,
    ),
]
FixOption = Annotated[
    list[str],
    typer.Option(
        "--fix", help="PATTERN=OPTION: give these layers this option.", show_default=False
    ),
]
SkipOption = Annotated[
    list[str],
    typer.Option("--skip", help="Leave layers matching this pattern in float.", show_default=False),
]
ProfileOption = Annotated[
    Path | None, typer.Option("--profile", help="Saved profile to use.", show_default=False)
]
CostsOption = Annotated[
    Path | None, typer.Option("--costs", help="Saved costs to use.", show_default=False)
]
OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", help="Where to write.", show_default=False)
]
GoalOption = Annotated[
    str | None,
    typer.Option(
        "--goal",
        help="min:RESOURCE with --max-drop: the least use of it, instead of the least loss.",
    ),
]
MaxDropOption = Annotated[
    float | None,
    typer.Option("--max-drop", help="Largest measured drop of the metric: 0.01 is one point."),
]
RefineOption = Annotated[
    int | None,
    typer.Option(
        "--refine",
        help="Run so many allocations beside the predicted best on the calibration data, and take "
        "one that is measurably better.",
        min=0,
        show_default="32 with --estimator auto, else 0",
    ),
]
ClampOption = Annotated[
    bool, typer.Option("--clamp", help="Make predicted losses monotone in cost first.")
]
NoVerifyOption = Annotated[
    bool, typer.Option("--no-verify", help="Do not run the answer on the model.")
]
FailIfOption = Annotated[
    list[str],
    typer.Option(
        "--fail-if",
        help="Exit with code 5 when this holds of the answer: 'accuracy_drop > 1%', "
        "'usage.latency > 3ms or status != optimal'; may be repeated. Names: metric, "
        "accuracy_drop, metric_drop, loss, loss_increase, best_baseline_loss, predicted_loss, gap, "
        "status, usage.RESOURCE, share.RESOURCE …",
        show_default=False,
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def options_of(text: str) -> list[str]:
    """Split a menu.

    Args:
        text: Names separated by commas.

    Returns:
        The names.
    """
    return [name.strip() for name in text.split(",") if name.strip()]


def budgets_of(texts: list[str]) -> dict[str, str | float]:
    """Read the budgets of a command line.

    Args:
        texts: RESOURCE=AMOUNT each.

    Returns:
        Resource -> amount as written.

    Raises:
        BudgetError: One cannot be read, or a resource has two.
    """
    budgets: dict[str, str | float] = {}
    for text in texts:
        budget = parse_budget(text)
        if budget.resource in budgets:
            raise BudgetError(f"two budgets for {budget.resource}: {text!r} is the second")
        budgets[budget.resource] = budget.text
    return budgets


def fixes_of(texts: list[str]) -> dict[str, str]:
    """Read what is fixed.

    Args:
        texts: PATTERN=OPTION each.

    Returns:
        Pattern -> option.

    Raises:
        InputError: Not of this form.
    """
    fixes = {}
    for text in texts:
        pattern, separator, option = text.rpartition("=")
        if not (separator and pattern and option):
            raise InputError(f"--fix {text!r}: write PATTERN=OPTION, such as fc=w8a8")
        fixes[pattern] = option
    return fixes


def memory_of(text: str | None) -> int | None:
    """Read an amount of memory.

    Args:
        text: A number with a unit of bytes, or None.

    Returns:
        Bytes, or None where nothing was given.

    Raises:
        InputError: Not a positive amount of bytes.
    """
    return None if text is None else parse_bytes("--memory-limit", text)


def settings_of(texts: list[str]) -> dict[str, Any]:
    """Read estimator settings.

    Args:
        texts: NAME=VALUE each.

    Returns:
        Name -> value, as a number or a truth value where it reads as one.

    Raises:
        InputError: Not of this form.
    """
    settings: dict[str, int | float | bool | str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not (separator and name and value):
            raise InputError(f"--set {text!r}: write NAME=VALUE, such as probes=64")
        settings[name] = _value(value)
    return settings


def _value(text: str) -> int | float | bool | str:
    if text in {"true", "false"}:
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
