"""Importers of published tables and models, each for the one layout it names."""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpsearch.errors import DocumentError, UnknownNameError
from mpsearch.hardware.csv_tables import ColumnMapping, import_csv
from mpsearch.hardware.device import Device
from mpsearch.hardware.lut_model import FORMULAS
from mpsearch.hardware.table import CostTable

__all__ = ["IMPORTERS", "Importer", "import_published"]

Converted = CostTable | Device


@dataclass(frozen=True)
class Importer:
    """One published layout.

    Attributes:
        name: What it is called on the command line.
        summary: What the file holds.
        read: File to a table or a device.
    """

    name: str
    summary: str
    read: Callable[[Path], Converted]


def import_published(layout: str, path: str | Path) -> Converted:
    """Read a published file.

    Args:
        layout: Name of the importer.
        path: The file.

    Returns:
        A cost table, or a device where the file holds a formula and not a table.

    Raises:
        UnknownNameError: No importer is called so.
        DocumentError: The file cannot be read, or is not of this layout.
    """
    if layout not in IMPORTERS:
        raise UnknownNameError("layout", layout, IMPORTERS)
    try:
        return IMPORTERS[layout].read(Path(path))
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise DocumentError(
            f"{path} is not of layout {layout}: {type(error).__name__} {error}"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DocumentError(f"cannot read {path}: {error}") from error
    return content


def _origin(content: Mapping[str, Any]) -> tuple[str, str]:
    """Return provenance and licence from the `provenance` part of a file."""
    about = content["provenance"]
    file = f", {about['file']}" if "file" in about else ""
    paper = f"; {about['paper']}" if "paper" in about else ""
    return f"{about['repo']} at {about['commit'][:12]}{file}{paper}", about["licence"]


def _hawq_autotvm(path: Path) -> CostTable:
    content = _json(path)
    provenance, licence = _origin(content)
    found: dict[tuple[str, str, tuple[tuple[str, int], ...]], list[float]] = defaultdict(list)
    batches = set()
    for row in content["rows"]:
        op, shape, batch = _autotvm_shape(row)
        option = {"int8": "w8a8", "int4": "w4a4"}[row["kernel_dtype"]]
        found[op, option, tuple(shape.items())].append(row["latency_us"])
        batches.add(batch)
    (batch,) = batches
    return CostTable.checked(
        {
            "device": "nvidia-t4",
            "description": "convolutions and linear layers tuned by AutoTVM; no requantization",
            "provenance": provenance,
            "licence": licence,
            "origin": "measured",
            "units": {"latency": "us"},
            "batch": batch,
            "entries": [
                {
                    "op": op,
                    "shape": dict(shape),
                    "option": option,
                    "values": {"latency": statistics.median(times)},
                    "spread": {"latency": max(times) - min(times)},
                }
                for (op, option, shape), times in found.items()
            ],
        },
        str(path),
    )


def _autotvm_shape(row: Mapping[str, Any]) -> tuple[str, dict[str, int], int]:
    """Read a workload; images are padded already, so only what comes out of them is a size."""
    if row["task"].startswith("dense"):
        (rows, inputs), (outputs, _) = row["data_shape"], row["kernel_shape"]
        return "linear", {"in_features": inputs, "out_features": outputs}, rows
    if "HWNC" in row["task"]:
        height, width, batch, channels = row["data_shape"]
    else:
        batch, height, width, channels = row["data_shape"]
    kernel_height, kernel_width, outputs, _ = row["kernel_shape"]
    stride_height, stride_width = row["stride"]
    shape = {
        "in_channels": channels,
        "out_channels": outputs,
        "kernel_height": kernel_height,
        "kernel_width": kernel_width,
        "stride_height": stride_height,
        "stride_width": stride_width,
        "out_height": (height - kernel_height) // stride_height + 1,
        "out_width": (width - kernel_width) // stride_width + 1,
    }
    return "conv2d", shape, batch


def _hawq_ilp(path: Path) -> CostTable:
    content = _json(path)
    provenance, licence = _origin(content)
    columns = {
        "w4a4": (0.5, 1 / 64, content["latency_int4"]),
        "w8a8": (1.0, 1 / 16, content["latency_int8"]),
    }
    entries = [
        {
            "layer": layer,
            "option": option,
            "values": {
                "size": share * content["parameters"][index],
                "bops": factor * content["bops"][index],
                "latency": latency[index],
            },
        }
        for index, layer in enumerate(content["layers"])
        for option, (share, factor, latency) in columns.items()
    ]
    return CostTable.checked(
        {
            "device": "nvidia-t4",
            "description": f"allocation problem of {content['model']}, costs as its authors use "
            "them: size in 2^20 bytes at 8 bits, bops in their own unit",
            "provenance": provenance,
            "licence": licence,
            "origin": "given",
            "units": {"size": "MiB", "bops": "scaled BOPs", "latency": "ms"},
            "batch": 8,
            "entries": entries,
        },
        str(path),
    )


def _haq(path: Path) -> CostTable:
    # One-bit symmetric integers do not exist; the table's one bit is two levels with a zero point.
    mapping = ColumnMapping(
        option="w:int{w_bits}/a:int{a_bits}",
        values={"latency_units": ("latency_units", "simulator units")},
        layer="{layer_index}",
        rewrite=lambda option: re.sub(r"int1\b", "int1_asym", option),
    )
    return import_csv(
        path,
        mapping,
        device="haq-simulator",
        provenance="github.com/mit-han-lab/haq at 8228d126c800, "
        "qmobilenetv2_imagenet100_batch16_latency_table.npy; the unit is not stated there",
        licence="MIT",
        batch=16,
    )


def _mpic(path: Path) -> Device:
    content = _json(path)
    provenance, licence = _origin(content)
    source = f"{provenance} ({licence})"
    frequency = content["energy"]["frequency_hz"]
    peaks = {
        f"int{weight}×int{activation}": {"value": 2 * macs * frequency, "source": source}
        for activation, row in content["macs_per_cycle"].items()
        for weight, macs in row.items()
    }
    return _device(
        path,
        name="mpic-riscv",
        summary="mixed-precision RISC-V core",
        peaks=peaks,
        power={"value": content["energy"]["mean_power_w"], "source": source},
    )


def _qkeras_energy(path: Path) -> Device:
    content = _json(path)
    provenance, licence = _origin(content)
    add, nothing = content["fixed_point_add_vs_bits"]
    square, linear, constant = content["fixed_point_mul_vs_bits"]
    dram, offset = content["dram_rd_vs_bits"]
    if nothing or constant or offset or content["units"][:2] != "pJ":
        raise ValueError("polynomials in pJ without a constant part are expected")
    return _device(
        path,
        name="asic-45nm",
        summary="energy of an accelerator in 45 nm",
        energies={
            "integer_multiply": [square, linear],
            "integer_add": add,
            "multiply": {name: content[f"{name}_mul"][0] for name in ("fp16", "fp32")},
            "add": {name: content[f"{name}_add"][0] for name in ("fp16", "fp32")},
            "memory_per_bit": dram * content["dram_mul_factor"],
            "source": f"{provenance} ({licence})",
        },
    )


def _finn_mvau(path: Path) -> Device:
    content = _json(path)
    provenance, licence = _origin(content)
    different = [name for name, formula in FORMULAS.items() if content[name] != formula]
    if different:
        raise ValueError(f"other formulas than the ones implemented: {', '.join(different)}")
    return _device(
        path,
        name="finn-mvau",
        summary="LUTs of a matrix-vector unit with one processing element and one lane",
        luts={"source": f"{provenance} ({licence})"},
    )


def _device(path: Path, **content: Any) -> Device:
    return Device.parse(json.dumps(content), str(path))


def _by_name(importers: Iterable[Importer]) -> dict[str, Importer]:
    return {importer.name: importer for importer in importers}


IMPORTERS = _by_name(
    (
        Importer(
            "hawq-autotvm",
            "HAWQ's T4 tuning logs: int8 and int4 convolutions (JSON)",
            _hawq_autotvm,
        ),
        Importer("hawq-ilp", "an allocation problem of HAWQ-V3: costs by layer (JSON)", _hawq_ilp),
        Importer(
            "haq", "HAQ's latency look-up table, layer × weight × activation bits (CSV)", _haq
        ),
        Importer("mpic", "MACs per cycle of the MPIC core (JSON); gives a device", _mpic),
        Importer(
            "qkeras-energy", "QKeras' energy polynomials (JSON); gives a device", _qkeras_energy
        ),
        Importer("finn-mvau", "FINN's LUT model (JSON); gives a device", _finn_mvau),
    )
)
"""Name -> importer."""
