"""Pricing a live model: its shapes, its schedule, and what a device says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from mpsearch.errors import DataError, ModelError, MpsearchError, UnknownNameError
from mpsearch.hardware.lookup import Hardware, price_hardware
from mpsearch.hardware.neighbours import TO_INT8, with_graph
from mpsearch.hardware.peak import EAGER_SOURCE, PEAK_SOURCE, activation_steps
from mpsearch.hardware.resources import (
    Workload,
    fixed_memory,
    known_resources,
    price_groups,
    resource,
)
from mpsearch.hardware.schedule import record_schedule
from mpsearch.hardware.table import CostTable
from mpsearch.menu import Menu
from mpsearch.models.layers import LayerSurvey
from mpsearch.schemas import Costs

__all__ = ["ACTIVATION_MEMORY", "EAGER_ACTIVATION_MEMORY", "price_survey"]

ACTIVATION_MEMORY = "activation_memory"
EAGER_ACTIVATION_MEMORY = "eager_activation_memory"
"""The same with tensors counted until the running Python model lets go of them; by name only."""


def price_survey(
    module: nn.Module,
    inputs: Tensor,
    survey: LayerSurvey,
    menu: Menu,
    *,
    hardware: Hardware | None = None,
    resources: Sequence[str] | None = None,
    batch: int | None = None,
    context: int = 1,
    on_resource: Callable[[str], None] = lambda _: None,
) -> Costs:
    """Price every group at every option.

    Args:
        module: The model.
        inputs: A batch that it accepts; the first input gives the shapes.
        survey: Its layers.
        menu: Groups and options.
        hardware: Device or cost table that prices further resources; None: none.
        resources: Names of the resources to price; None: all that need no device, and all of the
            hardware.
        batch: Inputs processed together, for activation memory, latency and energy; None: one, or
            what the cost table was measured with.
        context: Tokens kept in `kv_cache_memory`.
        on_resource: Called with the name of each resource that was priced.

    Returns:
        The costs. Activation memory that cannot be recorded is left out with a warning, unless it
        was asked for by name.

    Raises:
        UnknownNameError: A resource is known neither here nor to the hardware.
        ModelError: Activation memory was asked for and the model's schedule cannot be recorded.
    """
    workload = Workload(1 if batch is None else batch, context)
    device = None
    if hardware is not None:
        layers = {layer.name: layer for layer in survey.layers}
        device = price_hardware(hardware, menu.groups, menu.options, layers, batch)
    everything = [
        *known_resources(default=True),
        ACTIVATION_MEMORY,
        *(device.units if device else ()),
    ]
    wanted = list(dict.fromkeys(resources or everything))
    content: dict[str, Any] = {
        key: {} for key in ("values", "peaks", "units", "baseline", "provenance")
    }
    warnings: list[str] = []
    for name in wanted:
        if device is not None and name in device.units:
            content["values"][name] = device.values[name]
            content["units"][name] = device.units[name]
            content["provenance"][name] = device.provenance[name]
            if name in device.baseline:
                content["baseline"][name] = device.baseline[name]
        elif name in {ACTIVATION_MEMORY, EAGER_ACTIVATION_MEMORY}:
            _add_activation_memory(
                name, content, module, inputs, menu, workload, warnings, asked=resources is not None
            )
        elif name in known_resources():
            entry = resource(name)
            content["values"][name], content["baseline"][name] = price_groups(
                entry, survey, menu, workload
            )
            content["units"][name], content["provenance"][name] = entry.unit, entry.source
        else:
            known = [*known_resources(), ACTIVATION_MEMORY, EAGER_ACTIVATION_MEMORY]
            known += device.units if device else ()
            raise UnknownNameError("resource", name, known)
        on_resource(name)
    if device is not None:
        content |= {
            "hardware": device.name,
            "unavailable": device.unavailable,
            "origins": {k: v for k, v in device.origins.items() if k in content["values"]},
            "extrapolated": {
                k: v for k, v in device.extrapolated.items() if k in content["values"]
            },
            "tolerance": {k: v for k, v in device.tolerance.items() if k in content["values"]},
        }
        warnings += device.warnings
    found = Costs(
        groups=list(menu.groups),
        options=menu.names,
        fixed={"weight_memory": fixed_memory(survey, menu)},
        members=menu.members,
        warnings=warnings,
        **content,
    )
    if isinstance(hardware, CostTable) and TO_INT8 in hardware.ops:
        first = inputs[:1].expand(hardware.batch, *inputs.shape[1:]).clone()
        return with_graph(found, hardware, module, first, menu)
    return found


def _add_activation_memory(
    name: str,
    content: dict[str, Any],
    module: nn.Module,
    inputs: Tensor,
    menu: Menu,
    workload: Workload,
    warnings: list[str],
    *,
    asked: bool,
) -> None:
    first = inputs[:1].expand(workload.batch, *inputs.shape[1:]).clone()
    try:
        schedule = record_schedule(module, first)
    except (DataError, ModelError, RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = f"{name} is not priced: the schedule cannot be recorded: {reason}"
        if asked:
            raise (error if isinstance(error, MpsearchError) else ModelError(message)) from error
        warnings.append(message)
        return
    as_run = name == EAGER_ACTIVATION_MEMORY
    steps, baseline = activation_steps(schedule, menu, as_run=as_run)
    content["peaks"][name] = steps
    content["baseline"][name] = baseline
    content["units"][name] = "B"
    source = EAGER_SOURCE if as_run else PEAK_SOURCE
    content["provenance"][name] = f"{source}; batch of {workload.batch}"
