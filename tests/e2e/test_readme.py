"""What the README shows is run as it stands there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
MPSEARCH = Path(sys.executable).with_name("mpsearch")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    """Every `$ mpsearch …` line, continuations joined and remarks dropped."""
    joined = "\n".join(blocks("console")).replace("\\\n", " ")
    lines = [line[2:] for line in joined.splitlines() if line.startswith("$ mpsearch")]
    return [line.partition("  #")[0].strip() for line in lines]


def mpsearch(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MPSEARCH, *words], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
def test_the_library_example_runs(tmp_path: Path) -> None:
    (code,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("optimal")


@pytest.mark.slow
def test_the_searches_of_the_readme_run_in_order(tmp_path: Path) -> None:
    searches = [line for line in commands() if line.startswith("mpsearch search")]
    own = [line for line in searches if "my_package" in line]
    assert len(own) == 1
    for line in searches:
        if line in own:
            continue
        done = mpsearch(shlex.split(line)[1:], tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert json.loads((tmp_path / "out" / "allocation.json").read_text())["status"] == "optimal"


def test_the_users_own_model_is_found_from_the_folder_they_stand_in(tmp_path: Path) -> None:
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "models.py").write_text(
        "from torch import nn\n"
        "def make_net():\n"
        "    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))\n"
    )
    (package / "data.py").write_text(
        "import torch\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "def make_loader():\n"
        "    torch.manual_seed(0)\n"
        "    x = torch.randn(40, 4)\n"
        "    return DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=8)\n"
    )
    (line,) = [line for line in commands() if "my_package" in line]
    done = mpsearch([*shlex.split(line)[1:], "--json"], tmp_path)
    # The example has random weights here; what counts is that it is found, searched and measured.
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verification"]["data"]["inputs"] == 40


def test_the_problem_file_of_the_readme_is_solved(tmp_path: Path) -> None:
    (problem,) = blocks("json")
    (tmp_path / "problem.json").write_text(problem)
    done = mpsearch(["solve", "problem.json", "--json"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["choice"] == {"conv1": "w4a4"}


def test_every_command_the_readme_names_exists(tmp_path: Path) -> None:
    named = {word for line in commands() for word in shlex.split(line.replace("|", " "))[1:]}
    known = mpsearch(["--help"], tmp_path).stdout
    stages = {"search", "solve", "profile", "price", "frontier", "verify", "formats", "estimators"}
    assert stages <= named
    assert all(stage in known for stage in stages)


def test_every_document_the_readme_links_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    missing = [link for link in links if not (Path(__file__).parents[2] / link).exists()]
    assert not missing
