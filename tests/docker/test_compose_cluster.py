"""What the cluster's compose file says about mpsearch is true, and nothing of it is left open."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_files import CLUSTER, ROOT, SINGLE, services, substituted
from typer.testing import CliRunner

SERVICES = services(CLUSTER)
OURS = {name: found for name, found in SERVICES.items() if found["image"].startswith("mpsearch:")}
# Started once, before the others, to give a volume to its user.
AS_ROOT = {"volume-owner"}


def _settings(service: dict[str, Any]) -> set[str]:
    return {name for name in service.get("environment", {}) if name.startswith("MPSEARCH_")}


@pytest.mark.parametrize("path", [SINGLE, CLUSTER], ids=lambda path: path.name)
def test_every_setting_exists(path: Path) -> None:
    from mpsearch_api.settings import Settings

    known = {f"MPSEARCH_{name.upper()}" for name in Settings.model_fields}
    used = {name for found in services(path).values() for name in _settings(found)}
    proxys = {"MPSEARCH_SITE", "MPSEARCH_REPLICAS", "MPSEARCH_HEALTH_INTERVAL"}
    assert used
    assert used - proxys <= known


def test_the_settings_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    from mpsearch_api.settings import Settings

    for name in ("api-1", "api-2", "dispatcher"):
        for variable in _settings(SERVICES[name]):
            monkeypatch.setenv(variable, str(SERVICES[name]["environment"][variable]))
        found = Settings()
        assert found.executor == "ray"
        assert found.open_mode is False
        assert "@" not in found.database  # its password is in a file


@pytest.mark.parametrize("path", [SINGLE, CLUSTER], ids=lambda path: path.name)
def test_every_image_is_pinned(path: Path) -> None:
    for name, found in services(path).items():
        tag = found["image"].rpartition("/")[2].partition(":")[2]
        assert tag, f"{name}: {found['image']} names no version"
        if not found["image"].startswith("mpsearch:"):
            assert re.match(r"\d+", tag), f"{name}: {found['image']} is no version"


def _words(found: dict[str, Any]) -> list[str]:
    """What a container starts, after the init process of the image."""
    entry = found.get("entrypoint", ["dumb-init", "--", "mpsearch"])
    words = [*entry, *found.get("command", [])]
    return words[words.index("--") + 1 :] if words[0] == "dumb-init" else words


def _exists(words: list[str]) -> None:
    if words[:2] == ["sh", "-c"]:
        for command in words[2].split("&&"):
            _exists(command.strip().removeprefix("exec ").split())
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]), words[2]
    elif words[:2] == ["python", "-c"]:
        compile(words[2], "command", "exec")
    elif words[0] == "chown":
        pass  # of the base system
    else:
        scripts = {found.name for found in metadata.entry_points(group="console_scripts")}
        assert words[0] in scripts, words


@pytest.mark.parametrize("name", OURS)
def test_what_a_container_of_ours_starts_exists(name: str) -> None:
    pytest.importorskip("ray")
    _exists(_words(OURS[name]))


def test_the_options_of_serve_exist() -> None:
    from mpsearch.cli.app import app

    shown = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    for word in _words(SERVICES["api-1"]):
        if word.startswith("--"):
            assert word in shown


@pytest.mark.parametrize("name", ["dispatcher", "ray-head", "ray-worker"])
def test_the_options_of_ray_exist(name: str) -> None:
    pytest.importorskip("ray")
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    words = " ".join(_words(SERVICES[name])).partition("&&")[0].split()
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known


def test_the_image_is_built_with_extras_that_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = SERVICES["api-1"]["build"]["args"]["EXTRAS"].split(",")
    assert set(extras) <= set(project["optional-dependencies"])
    assert {"torch", "api", "postgres", "ray", "s3"} <= set(extras)


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_confined(name: str) -> None:
    found = SERVICES[name]
    assert found["read_only"] is True
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    limits = found["deploy"]["resources"]["limits"]
    assert {"cpus", "memory", "pids"} <= set(limits)
    assert not str(found.get("user", "")).startswith("0") or name in AS_ROOT
    assert "healthcheck" in found
    if name not in AS_ROOT:
        assert "cluster" in found["networks"]


def test_only_the_proxy_is_published_and_only_to_this_machine() -> None:
    published = {name: found["ports"] for name, found in SERVICES.items() if found.get("ports")}
    assert published == {"proxy": ["127.0.0.1:8000:8080"]}
    whole = yaml.safe_load(substituted(CLUSTER.read_text(), {"MPSEARCH_SECRETS": "/s"}))
    assert whole["networks"]["cluster"] == {"internal": True}
    assert "--include-dashboard=false" in SERVICES["ray-head"]["command"]


def test_ray_asks_for_its_token_everywhere() -> None:
    for name, found in OURS.items():
        if "ray" in " ".join(_words(found)).split():
            assert found["environment"]["RAY_AUTH_MODE"] == "token", name
            assert found["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
            assert "ray_token" in found["secrets"]


def test_the_dispatcher_takes_its_cluster_and_token(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from mpsearch.errors import InputError
    from mpsearch_api.execution.ray.checking import check_ray

    environment = dict(SERVICES["dispatcher"]["environment"])
    token = tmp_path / "ray_token"
    environment["RAY_AUTH_TOKEN_PATH"] = str(token)
    with pytest.raises(InputError, match="no token"):
        check_ray(environment["MPSEARCH_RAY_ADDRESS"], environment)
    token.write_text("0123456789abcdef")
    check_ray(environment["MPSEARCH_RAY_ADDRESS"], environment)


def test_where_jobs_run_nothing_of_the_database_is_known() -> None:
    worker = SERVICES["ray-worker"]
    assert set(worker["secrets"]) == {"aws_credentials", "ray_token"}
    assert not _settings(worker)
    assert not [name for name in worker["environment"] if name.startswith("PG")]


def test_working_files_of_jobs_are_not_in_memory() -> None:
    worker = SERVICES["ray-worker"]
    assert worker["environment"]["TMPDIR"] in worker["volumes"]


def test_no_secret_is_in_clear() -> None:
    whole = yaml.safe_load(CLUSTER.read_text())
    used = {secret for found in SERVICES.values() for secret in found.get("secrets", [])}
    assert used == set(whole["secrets"])
    for found in whole["secrets"].values():
        assert found["file"].startswith("${MPSEARCH_SECRETS:?")
    for name, found in SERVICES.items():
        for variable, value in found.get("environment", {}).items():
            if re.search(r"PASSWORD|TOKEN|SECRET|CREDENTIAL", variable):
                assert str(value).startswith("/run/secrets/"), f"{name}: {variable}"
    with pytest.raises(KeyError, match="MPSEARCH_SECRETS"):
        substituted(CLUSTER.read_text(), {})


class TestSecrets:
    """What secrets.sh makes."""

    SCRIPT = ROOT / "docker" / "secrets.sh"

    def _make(self, folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", self.SCRIPT, folder], capture_output=True, text=True)

    def test_they_are_the_ones_that_compose_reads(self, tmp_path: Path) -> None:
        assert self._make(tmp_path / "secrets").returncode == 0
        whole = yaml.safe_load(substituted(CLUSTER.read_text(), {"MPSEARCH_SECRETS": "."}))
        asked = {Path(found["file"]).name for found in whole["secrets"].values()}
        assert {file.name for file in (tmp_path / "secrets").iterdir()} == asked

    def test_the_two_sides_of_each_agree(self, tmp_path: Path) -> None:
        import configparser
        import json

        folder = tmp_path / "secrets"
        self._make(folder)
        service = configparser.ConfigParser()
        service.read(folder / "database_service")
        assert service["mpsearch"]["password"] == (folder / "database_password").read_text()
        keys = configparser.ConfigParser()
        keys.read(folder / "aws_credentials")
        known = json.loads((folder / "object_store").read_text())["identities"][0]["credentials"][0]
        assert known["accessKey"] == keys["default"]["aws_access_key_id"]
        assert known["secretKey"] == keys["default"]["aws_secret_access_key"]
        assert len((folder / "ray_token").read_text()) == 64

    def test_they_are_new_each_time_and_their_owners_alone(self, tmp_path: Path) -> None:
        first, second = tmp_path / "first", tmp_path / "second"
        for folder in (first, second):
            self._make(folder)
            assert folder.stat().st_mode & 0o777 == 0o700
        for file in first.iterdir():
            assert file.read_text() != (second / file.name).read_text()

    def test_existing_ones_are_kept(self, tmp_path: Path) -> None:
        folder = tmp_path / "secrets"
        self._make(folder)
        before = (folder / "ray_token").read_text()
        assert self._make(folder).returncode != 0
        assert (folder / "ray_token").read_text() == before

    def test_a_folder_must_be_named(self) -> None:
        answer = subprocess.run(["sh", self.SCRIPT], capture_output=True, text=True)
        assert answer.returncode != 0
        assert "usage" in answer.stderr


def test_the_dockerfile_has_no_faults() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(__import__("sys").executable).parent))
    if hadolint is None:
        pytest.skip("no hadolint")
    answer = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout
