"""Running graphs in ONNX Runtime: whole runs by the clock, or every kernel by its own profiler."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import ModelError
from mpsearch.hardware.onnx_graph import onnx_modules

__all__ = [
    "WIDENING",
    "ProfiledSession",
    "RuntimeSession",
    "Spent",
    "least_disturbed",
    "reference_session",
]

WIDENING = "WeightBiasQuantization"
"""Optimizer of ONNX Runtime that rounds the weights of a float layer whose neighbours are int8. It
would undo an allocation, so it is switched off here; deploy with it switched off, too."""
CONVERSIONS = {"QuantizeLinear", "DequantizeLinear", "ReorderInput", "ReorderOutput", "Transpose"}
"""What the runtime puts between operations: rounding, restoring, changes of the memory layout."""
_NUMBER = re.compile(r"op(\d+)/")
REFERENCE_SIZE = 384


@dataclass
class Spent:
    """Seconds of one run, by operation.

    Attributes:
        work: Operation -> its kernels.
        between: Operation -> conversions of what it leaves; -1 for the model's input.
    """

    work: dict[int, float] = field(default_factory=dict)
    between: dict[int, float] = field(default_factory=dict)


class RuntimeSession:
    """A graph loaded into ONNX Runtime's CPU provider."""

    def __init__(self, data: bytes, threads: int, example: NDArray[Any]) -> None:
        """Load a graph.

        Args:
            data: A serialized ONNX model with one input.
            threads: Threads of a kernel.
            example: The input of every run.
        """
        _, runtime = onnx_modules()
        # One thread's processor time is what it would take on an idle machine; other work only
        # makes it wait. Several threads have no such clock.
        self._clock = time.thread_time if threads == 1 else time.perf_counter
        self._session = self._open(runtime, data, self._options(runtime, threads))
        self._feed = {self._session.get_inputs()[0].name: example}

    def _options(self, runtime: Any, threads: int) -> Any:  # noqa: ANN401
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A waiting thread that spins takes the core that another session needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options

    def _open(self, runtime: Any, data: bytes, options: Any) -> Any:  # noqa: ANN401
        return runtime.InferenceSession(
            data, options, providers=["CPUExecutionProvider"], disabled_optimizers=[WIDENING]
        )

    def run(self) -> float:
        """Run once.

        Returns:
            Seconds: processor time of the thread where there is one, else by the clock.
        """
        started = self._clock()
        self._session.run(None, self._feed)
        return self._clock() - started


class ProfiledSession(RuntimeSession):
    """A session whose kernels are timed one by one."""

    def __init__(self, data: bytes, threads: int, example: NDArray[Any]) -> None:
        """Load a graph; node names begin with `op<number>/`.

        Args:
            data: A serialized ONNX model with one input.
            threads: Threads of a kernel.
            example: The input of every run.
        """
        # The folder must outlive the session, which writes its profile there.
        self._folder = tempfile.TemporaryDirectory(prefix="mpsearch-")
        super().__init__(data, threads, example)
        onnx, _ = onnx_modules()
        optimized = onnx.load(Path(self._folder.name) / "optimized.onnx", load_external_data=False)
        self._nodes: list[Any] = list(optimized.graph.node)
        self._entry = optimized.graph.input[0].name

    def _options(self, runtime: Any, threads: int) -> Any:  # noqa: ANN401
        options = super()._options(runtime, threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(self._folder.name) / "profile")
        options.optimized_model_filepath = str(Path(self._folder.name) / "optimized.onnx")
        return options

    def finish(self) -> list[Spent]:
        """Stop, and read what the profiler noted.

        Returns:
            One entry for every run, in order.

        Raises:
            ModelError: The profile does not fit the graph.
        """
        path = self._session.end_profiling()
        events = json.loads(Path(path).read_text(encoding="utf-8"))
        self._folder.cleanup()
        kernels = sorted(
            (e for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")),
            key=lambda event: event["ts"],
        )
        width = len(self._nodes)
        if not width or len(kernels) % width:
            raise ModelError(
                f"ONNX Runtime reported {len(kernels)} kernels for a graph of {width}; its "
                "profile cannot be read"
            )
        place = attribute(self._nodes, self._entry)
        runs = []
        for start in range(0, len(kernels), width):
            spent = Spent()
            for event, node, (number, conversion) in zip(
                kernels[start : start + width], self._nodes, place, strict=True
            ):
                if event["args"].get("op_name") != node.op_type:
                    raise ModelError(
                        f"ONNX Runtime ran {event['args'].get('op_name')} where its graph has "
                        f"{node.op_type}; its profile cannot be read"
                    )
                into = spent.between if conversion else spent.work
                into[number] = into.get(number, 0.0) + event["dur"] * 1e-6
            runs.append(spent)
        return runs


def attribute(nodes: Sequence[Any], entry: str) -> list[tuple[int, bool]]:
    """Tell what every node of an optimized graph belongs to.

    Args:
        nodes: Nodes in execution order.
        entry: Name of the graph's input.

    Returns:
        For each node the operation it computes, or whose result it converts, and whether it
        converts.
    """
    maker = {entry: -1}
    found = []
    for node in nodes:
        named = _NUMBER.match(node.name)
        converts = node.op_type in CONVERSIONS and not (named and node.op_type == "Transpose")
        if named and not converts:
            number = int(named[1])
        else:
            # Placed by the optimizer: it belongs to what made its first input.
            number = maker.get(node.input[0] if node.input else "", -1)
        for name in node.output:
            maker[name] = number
        found.append((number, converts))
    return found


def least_disturbed(seconds: Sequence[float]) -> float:
    """Summarise repeated times by what they are when nothing else disturbs.

    Args:
        seconds: Times of one thing.

    Returns:
        Their tenth percentile: interruptions only ever add time.
    """
    return float(np.percentile(np.asarray(seconds), 10))


def reference_session(threads: int) -> RuntimeSession:
    """Load a fixed matrix product, to tell how fast the machine is at the moment.

    Args:
        threads: Threads of a kernel.

    Returns:
        The session.
    """
    onnx, _ = onnx_modules()
    generator = np.random.default_rng(0)
    side = REFERENCE_SIZE
    values = generator.standard_normal((side, side)).astype(np.float32)
    helper = onnx.helper
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "reference",
        [tensor("x", onnx.TensorProto.FLOAT, [side, side])],
        [tensor("y", onnx.TensorProto.FLOAT, [side, side])],
        [onnx.numpy_helper.from_array(values, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return RuntimeSession(model.SerializeToString(), threads, values)
