"""`mpsearch hardware measure`: killed and resumed, and how little data it needs."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mpsearch.cli.hardware_measure import measured_input
from mpsearch.hardware.round_times import RoundsTaken
from mpsearch.hardware.rounds import rounds_file
from mpsearch.models import synthetic
from mpsearch.models.named import NamedModel

MODEL = ("digits-resnet", "-d", "digits")


def test_synthetic_data_is_made_for_one_input_unless_more_is_asked_for(monkeypatch) -> None:
    steps: list[int] = []
    real = synthetic.distilled_inputs
    monkeypatch.setattr(
        synthetic, "distilled_inputs", lambda m, x, s: steps.append(s) or real(m, x, s)
    )
    model = NamedModel("n", nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval())
    assert measured_input("synthetic?shape=3x8x8", model).shape == (1, 3, 8, 8)
    assert measured_input("synthetic?shape=3x8x8&count=5&steps=2", model).shape == (5, 3, 8, 8)
    assert steps == [1, 2]


def test_other_data_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    torch.manual_seed(0)
    inputs = torch.randn(3, 4)
    np.savez(path, inputs=inputs.numpy())
    found = measured_input(str(path), NamedModel("n", nn.Linear(4, 2)))
    assert torch.equal(found[0], inputs[0])


def _started(*words: object) -> subprocess.Popen[bytes]:
    call = "from mpsearch.cli import main; main()"
    command = [sys.executable, "-c", call, "hardware", "measure", *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def _killed_when(process: subprocess.Popen[bytes], file: Path) -> None:
    """Kill -9 as soon as a file is there."""
    try:
        deadline = time.monotonic() + 120
        while not file.exists():
            assert process.poll() is None, f"ended before it wrote {file.name}"
            assert time.monotonic() < deadline, f"{file.name} was never written"
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_killed_measurement_goes_on_with_the_rounds_it_has(run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "cpu.json"
    kept = rounds_file(out)
    _killed_when(_started(*MODEL, "--rounds", "2000", "--out", out), kept)
    before = RoundsTaken.load(kept)
    assert before.rounds
    assert not out.exists()
    refused = run("hardware", "measure", *MODEL, "--out", out)
    assert refused.code == 2
    assert "--resume" in refused.message
    # Enough rounds are there already, or a few are missing; none is run again.
    wanted = before.rounds + 4
    words = ("--rounds", wanted, "--time-limit", "1000", "--resume", "--out", out)
    resumed = run("hardware", "measure", *MODEL, *words)
    assert resumed.code == 0, resumed.message
    found = json.loads(out.read_text())
    done = re.search(r"(\d+) rounds", found["description"])
    assert done is not None
    assert before.rounds <= int(done[1]) <= wanted
    assert not kept.exists()


@pytest.mark.slow
def test_a_killed_measurement_of_torch_keeps_the_shapes_it_has(run, tmp_path: Path) -> None:
    out = tmp_path / "cpu.json"
    words = (*MODEL, "--backend", "torch", "--out", out)
    _killed_when(_started(*words, "--rounds", "60"), out)
    before = json.loads(out.read_text())["entries"]
    assert before
    resumed = run("hardware", "measure", *words, "--rounds", "3", "--resume")
    assert resumed.code == 0, resumed.message
    after = json.loads(out.read_text())["entries"]
    assert after[: len(before)] == before
    assert len(after) == 2 * 9  # float and w8a8 of nine shapes
