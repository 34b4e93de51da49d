"""One door to all sources of hardware costs: a shipped device, a device file, or a cost table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import DocumentError, InputError, MismatchError
from mpsearch.formats import Option, parse_option
from mpsearch.hardware.device import Device, device, known_devices
from mpsearch.hardware.interpolation import Estimate
from mpsearch.hardware.shapes import shape_of
from mpsearch.hardware.table import CostTable, to_base
from mpsearch.models.layer import Layer
from mpsearch.schemas import Costs, Profile

__all__ = ["Hardware", "HardwarePrices", "as_hardware", "price_hardware", "price_profile"]

Hardware = Device | CostTable

_WORST = ("given", "measured", "roofline", "modelled", "interpolated", "extrapolated")


def as_hardware(hardware: str | Path | Hardware) -> Hardware:
    """Find a device or a cost table.

    Args:
        hardware: One of them, the name of a shipped device, or the path of a file (JSON, YAML or
            CSV) with either.

    Returns:
        The device or the table.

    Raises:
        UnknownNameError: Neither a shipped device nor an existing file.
        DocumentError: The file is neither a device nor a cost table.
    """
    if isinstance(hardware, (Device, CostTable)):
        return hardware
    name = str(hardware)
    if name in known_devices() or not Path(name).exists():
        return device(name)
    if Path(name).suffix != ".json":
        return CostTable.read(name)
    try:
        content = json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DocumentError(f"cannot read {name}: {error}") from error
    kind = content.get("kind") if isinstance(content, dict) else None
    return Device.load(name) if kind == "device" else CostTable.load(name)


@dataclass
class HardwarePrices:
    """What a device or table says of groups of layers.

    Attributes:
        units: Resource -> base unit.
        values: Resource -> costs, float64, groups x options; NaN where there is no price.
        origins: Resource -> groups x options, how each price was found.
        unavailable: Group -> option -> why the device cannot run it.
        extrapolated: Resource -> layers with a price from beyond the measured shapes.
        baseline: Resource -> cost of all layers in float32, where the device runs it.
        provenance: Resource -> where its prices come from.
        tolerance: Resource -> largest error of its sums against whole models that were run.
        name: Name of the device.
        groups: Names of the groups.
    """

    groups: list[str]
    units: dict[str, str]
    provenance: dict[str, str]
    name: str
    values: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    origins: dict[str, list[list[str]]] = field(default_factory=dict)
    unavailable: dict[str, dict[str, str]] = field(default_factory=dict)
    extrapolated: dict[str, list[str]] = field(default_factory=dict)
    baseline: dict[str, float] = field(default_factory=dict)
    tolerance: dict[str, float] = field(default_factory=dict)

    @property
    def warnings(self) -> list[str]:
        """What a user should know of these prices, in sentences."""
        return [
            f"{resource} of {len(layers)} layers is extrapolated beyond the shapes in the table of "
            f"{self.name}: {', '.join(layers[:6])}" + (" …" if len(layers) > 6 else "")
            for resource, layers in self.extrapolated.items()
        ]


def price_hardware(
    hardware: Hardware,
    groups: Mapping[str, list[str]],
    options: list[Option],
    layers: Mapping[str, Layer],
    batch: int | None = None,
) -> HardwarePrices:
    """Price groups of layers on a device.

    Args:
        hardware: Device or cost table.
        groups: Group -> its layers.
        options: The options.
        layers: Layer by name; may be empty for tables that name layers.
        batch: Inputs processed together; None: one, or what the table was measured with.

    Returns:
        The prices. An option that any layer of a group cannot have is unavailable to the group.

    Raises:
        InputError: The table was measured with another batch.
    """
    if isinstance(hardware, CostTable):
        by_batch = any("batch" in entry.shape for entry in hardware.entries)
        if batch not in {None, hardware.batch} and not by_batch:
            raise InputError(
                f"the table of {hardware.device} was measured with batch {hardware.batch}, not "
                f"{batch}; ask for that batch or measure again"
            )
        units = {each: to_base(1.0, unit)[1] for each, unit in hardware.units.items()}
        provenance = dict.fromkeys(units, f"{hardware.device}: {hardware.provenance}")
        found = HardwarePrices(list(groups), units, provenance, hardware.device)
        found.tolerance = hardware.tolerance
        counted = (by_batch and batch) or hardware.batch
    else:
        units = hardware.resources
        provenance = {each: _source(hardware, each) for each in units}
        found = HardwarePrices(list(groups), units, provenance, hardware.name)
        counted = batch or 1
    for resource in units:
        _fill(found, resource, hardware, groups, options, layers, counted)
    _keep_priced(found, options)
    return found


def _keep_priced(found: HardwarePrices, options: list[Option]) -> None:
    """Take options with a price in any resource off the list of those that cannot run."""
    for group, reasons in list(found.unavailable.items()):
        row = found.groups.index(group)
        for column, option in enumerate(options):
            if any(np.isfinite(table[row, column]) for table in found.values.values()):
                reasons.pop(option.name, None)
        if not reasons:
            del found.unavailable[group]


def _fill(
    found: HardwarePrices,
    resource: str,
    hardware: Hardware,
    groups: Mapping[str, list[str]],
    options: list[Option],
    layers: Mapping[str, Layer],
    batch: int,
) -> None:
    table = np.full((len(groups), len(options)), np.nan)
    origins = [["unavailable"] * len(options) for _ in groups]
    beyond: dict[str, None] = {}
    for row, (group, members) in enumerate(groups.items()):
        for column, option in enumerate(options):
            prices = [
                _one(hardware, resource, name, layers.get(name), option, batch) for name in members
            ]
            estimates = [price for price in prices if isinstance(price, Estimate)]
            if len(estimates) < len(prices):
                reason = next(price for price in prices if isinstance(price, str))
                found.unavailable.setdefault(group, {}).setdefault(option.name, reason)
                continue
            table[row, column] = math.fsum(each.value for each in estimates)
            origins[row][column] = max((each.origin for each in estimates), key=_WORST.index)
            beyond.update(
                (name, None)
                for name, each in zip(members, estimates, strict=True)
                if each.origin == "extrapolated"
            )
    found.values[resource] = table
    found.origins[resource] = origins
    if beyond:
        found.extrapolated[resource] = list(beyond)
    plain = parse_option("float")
    floats = [
        _one(hardware, resource, name, layers.get(name), plain, batch)
        for members in groups.values()
        for name in members
    ]
    known = [price.value for price in floats if isinstance(price, Estimate)]
    if len(known) == len(floats):
        found.baseline[resource] = math.fsum(known)


def _one(
    hardware: Hardware, resource: str, name: str, layer: Layer | None, option: Option, batch: int
) -> Estimate | str:
    """Price one layer, or say why there is no price."""
    if isinstance(hardware, Device):
        if layer is None:
            return f"the shape of layer {name} is not known"
        price = hardware.price(resource, layer, option, batch)
        return (
            price
            if isinstance(price, str)
            else Estimate(price, "roofline" if resource == "latency" else "modelled")
        )
    reason = hardware.why_missing(layer.kind if layer else None, option.name)
    if reason is not None:
        return reason
    named = hardware.of_layer(name, option.name, resource)
    if named is not None:
        return named
    if layer is None:
        return f"the table of {hardware.device} names no layer {name} at {option.name}"
    return hardware.of_shape(layer.kind, shape_of(layer, batch), option.name, resource)


def _source(hardware: Device, resource: str) -> str:
    if resource == "latency":
        return f"{hardware.name}: roofline (Williams et al. 2009) of public data-sheet figures"
    if resource == "luts":
        assert hardware.luts is not None
        return f"{hardware.name}: {hardware.luts.source}"
    if hardware.energies is not None:
        return f"{hardware.name}: {hardware.energies.source}"
    assert hardware.power is not None
    return f"{hardware.name}: mean power × latency; {hardware.power.source}"


def price_profile(profile: Profile, table: CostTable) -> Costs:
    """Price saved scores by a table that names their layers; no model is needed.

    Args:
        profile: Names groups, their layers and the options.
        table: Cost table with a row for every layer and option.

    Returns:
        The costs, of the table's resources alone.

    Raises:
        MismatchError: The table names none of the profile's layers.
    """
    groups = {group: profile.layers_of(group) for group in profile.groups}
    options = [parse_option(name) for name in profile.options]
    found = price_hardware(table, groups, options, {})
    if not any(np.isfinite(values).any() for values in found.values.values()):
        some = next(iter(groups.values()))[0]
        raise MismatchError(
            f"the table of {table.device} has no row for any layer of the profile, such as {some} "
            f"at {profile.options[0]}; a table by shape needs the model (give MODEL and --data)"
        )
    return Costs(
        groups=profile.groups,
        options=profile.options,
        values=found.values,
        units=found.units,
        baseline=found.baseline,
        provenance=found.provenance,
        unavailable=found.unavailable,
        origins=found.origins,
        extrapolated=found.extrapolated,
        tolerance=found.tolerance,
        warnings=found.warnings,
        members=profile.members,
        hardware=found.name,
        model=profile.model,
    )
