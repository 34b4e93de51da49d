from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import torch

import mpsearch as mp
from mpsearch.models.digits import digits
from mpsearch.sensitivity import shards

MENU = ["w2a8", "w3a8", "w4a8", "w6a8", "w8a8"]


def images(count=64):
    whole = digits()
    return mp.DataSet("few", whole.inputs[:count], whole.targets[:count], batch_size=24)


@pytest.mark.parametrize("estimator", ["measured_loss", "measured_kl"])
def test_any_number_of_workers_gives_the_same_bits(estimator):
    data = images()
    alone = mp.profile("digits-resnet", data, MENU, estimator)
    for workers in (1, 3):
        with ThreadPoolExecutor(workers) as pool:
            shared = mp.profile("digits-resnet", data, MENU, estimator, executor=pool)
        assert np.array_equal(alone.loss, shared.loss)


@pytest.mark.slow
def test_processes_give_the_same_bits():
    data = images(24)
    alone = mp.profile("digits-resnet", data, MENU, "measured_loss")
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        shared = mp.profile("digits-resnet", data, MENU, "measured_loss", executor=pool)
    assert np.array_equal(alone.loss, shared.loss)


PROGRAM = """
import sys
import mpsearch as mp
from mpsearch.models.digits import digits

whole = digits()
data = mp.DataSet("few", whole.inputs[:{images}], whole.targets[:{images}], batch_size=8)

def tell(progress):
    if progress.stage == "profile" and progress.total > 1:
        print(progress.done, progress.total, flush=True)
        sys.stdin.readline()

mp.profile(
    "digits-resnet", data, {menu}, {estimator!r}, cache_dir={folder!r}, on_progress=tell, **{kwargs}
)
"""

LONG = [f"w{bits}" for bits in range(2, 17)]
RUNS = [
    ("measured_kl", 40, LONG, {}),
    ("hessian_trace", 64, ["w4"], {"probes": 100}),
]


def started(folder, estimator, images, menu, kwargs):
    """Start the program; it waits after every report of progress for a line."""
    program = PROGRAM.format(
        folder=str(folder), estimator=estimator, images=images, menu=menu, kwargs=kwargs
    )
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
    )


def killed(run):
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    run.stdin.close()
    run.stdout.close()
    assert run.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "images", "menu", "kwargs"), RUNS, ids=[r[0] for r in RUNS])
def test_a_run_killed_at_a_tenth_resumes_at_nine_hundredths_or_more(
    tmp_path, estimator, images, menu, kwargs
):
    run = started(tmp_path, estimator, images, menu, kwargs)
    share = 0.0
    while True:  # it waits after every report, so it is killed exactly there
        done, total = map(int, run.stdout.readline().split())
        share = done / total
        if share >= 0.1:
            break
        run.stdin.write("go on\n")
        run.stdin.flush()
    killed(run)
    assert share < 0.11
    again = started(tmp_path, estimator, images, menu, kwargs)
    done, total = map(int, again.stdout.readline().split())
    killed(again)
    assert done >= 0.09 * total  # the shards that were finished, not measured again


def test_a_second_run_measures_nothing_and_other_weights_measure_everything(
    net, data, tmp_path, monkeypatch
):
    first = mp.profile(net, data, ["w3", "w4"], "measured_loss", cache_dir=tmp_path)
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(shards, "AllocationMeter", None)
    shutil.rmtree(tmp_path / "profiles")
    second = mp.profile(net, data, ["w3", "w4"], "measured_loss", cache_dir=tmp_path)
    assert np.array_equal(first.loss, second.loss)
    with torch.no_grad():
        net.head.weight[0, 0] += 0.1
    with pytest.raises(TypeError):
        mp.profile(net, data, ["w3", "w4"], "measured_loss", cache_dir=tmp_path)


@pytest.mark.parametrize("content", [b"", b"[1.0]", b"cut off"])
def test_a_broken_shard_is_measured_again_with_a_warning(net, data, tmp_path, content):
    first = mp.profile(net, data, ["w3"], "measured_loss", cache_dir=tmp_path)
    shutil.rmtree(tmp_path / "profiles")
    (file,) = (tmp_path / "shards").glob("*.npz")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content == b"cut off" else content)
    with pytest.warns(RuntimeWarning, match=f"measured again, since .*{file.name}"):
        again = mp.profile(net, data, ["w3"], "measured_loss", cache_dir=tmp_path)
    assert np.array_equal(first.loss, again.loss)
    assert file.read_bytes() == whole


def test_a_shard_whose_bytes_changed_on_disk_is_not_believed(net, data, tmp_path):
    first = mp.profile(net, data, ["w3"], "measured_loss", cache_dir=tmp_path)
    shutil.rmtree(tmp_path / "profiles")
    (file,) = (tmp_path / "shards").glob("*.npz")
    content = bytearray(file.read_bytes())
    place = content.index(b"sums.npy") + 160  # within the numbers, behind the array's header
    content[place] ^= 1
    file.write_bytes(bytes(content))
    with pytest.warns(RuntimeWarning, match="measured again"):
        again = mp.profile(net, data, ["w3"], "measured_loss", cache_dir=tmp_path)
    assert np.array_equal(first.loss, again.loss)


def test_a_loss_that_cannot_be_sent_to_workers_is_refused(net, data):
    with ThreadPoolExecutor(1) as pool, pytest.raises(mp.errors.InputError, match="workers"):
        mp.profile(
            net,
            data,
            ["w3"],
            "measured_loss",
            executor=pool,
            loss=lambda output, target: torch.nn.functional.cross_entropy(output, target),
        )
