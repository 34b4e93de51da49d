"""Manifests follow Kubernetes' and KubeRay's schemas, and what they say about mpsearch is true."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker" / "k8s"
KUBERNETES = ("1.30", "1.33")


def _documents(path: Path) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all(path.read_text()) if found]


KUSTOMIZATION = _documents(FOLDER / "kustomization.yaml")[0]
OBJECTS = [found for name in KUSTOMIZATION["resources"] for found in _documents(FOLDER / name)]
TEMPLATES = _documents(FOLDER / "secrets.template.yaml")
RAY = next(found for found in OBJECTS if found["kind"] == "RayCluster")


def _name(found: dict[str, Any]) -> str:
    return f"{found['kind']}/{found['metadata']['name']}"


def _pods() -> dict[str, dict[str, Any]]:
    """Every pod template, by what makes it."""
    pods = {}
    for found in OBJECTS:
        if found["kind"] in {"Deployment", "StatefulSet"}:
            pods[_name(found)] = found["spec"]["template"]
    pods["ray-head"] = RAY["spec"]["headGroupSpec"]["template"]
    for group in RAY["spec"]["workerGroupSpecs"]:
        pods[f"ray-{group['groupName']}"] = group["template"]
    return pods


PODS = _pods()
WORKERS = [name for name in PODS if name in {"ray-processors", "ray-gpus"}]


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("found", [*OBJECTS, *TEMPLATES], ids=_name)
def test_an_object_follows_the_schema_of_kubernetes(found: dict[str, Any], version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="no kubernetes-validate")
    if found["kind"] != "RayCluster":
        validator.validate(found, version, strict=True)


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", PODS)
def test_a_pod_template_follows_the_schema_of_kubernetes(name: str, version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="no kubernetes-validate")
    template = copy.deepcopy(PODS[name])
    template["metadata"]["name"] = "one"
    validator.validate({"apiVersion": "v1", "kind": "Pod", **template}, version, strict=True)


def test_the_schema_of_kubernetes_refuses_what_is_wrong() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="no kubernetes-validate")
    wrong = copy.deepcopy(next(found for found in OBJECTS if found["kind"] == "Deployment"))
    wrong["spec"]["template"]["spec"]["containers"][0]["redinessProbe"] = {}
    with pytest.raises(validator.ValidationError):
        validator.validate(wrong, KUBERNETES[0], strict=True)


def test_the_ray_cluster_follows_the_schema_of_kuberay() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    from ray_cluster_schema import RAY_CLUSTER

    validator = jsonschema.Draft202012Validator(RAY_CLUSTER)
    assert [fault.message for fault in validator.iter_errors(RAY)] == []
    wrong = copy.deepcopy(RAY)
    wrong["spec"]["workerGroupSpecs"][0]["replica"] = 2
    wrong["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    assert len(list(validator.iter_errors(wrong))) == 2


def test_every_manifest_is_applied_but_the_template() -> None:
    files = {path.name for path in FOLDER.glob("*.yaml")}
    assert files - set(KUSTOMIZATION["resources"]) == {
        "kustomization.yaml",
        "secrets.template.yaml",
    }


def test_kustomize_puts_one_image_everywhere() -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl")
    answer = subprocess.run([kubectl, "kustomize", FOLDER], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    images = set(re.findall(r"image: (\S+)", answer.stdout))
    given = KUSTOMIZATION["images"][0]
    assert images == {f"{given['newName']}:{given['newTag']}", "postgres:17.6"}


@pytest.mark.parametrize("name", PODS)
def test_a_pod_keeps_to_the_restricted_standard(name: str) -> None:
    # https://kubernetes.io/docs/concepts/security/pod-security-standards/, "Restricted"
    spec = PODS[name]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    for container in spec["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]
        assert {"livenessProbe", "readinessProbe"} & set(container)
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"] for volume in spec["volumes"]}
        assert mounts - volumes <= {"database"}  # made by the claim's template


def _environment(name: str) -> set[str]:
    """Names of the variables that a pod's container gets."""
    container = PODS[name]["spec"]["containers"][0]
    found = {variable["name"] for variable in container.get("env", [])}
    maps = {o["metadata"]["name"]: o["data"] for o in OBJECTS if o["kind"] == "ConfigMap"}
    secrets = {o["metadata"]["name"]: o["stringData"] for o in TEMPLATES}
    for source in container.get("envFrom", []):
        kind, reference = next(iter(source.items()))
        found |= set((maps if kind == "configMapRef" else secrets)[reference["name"]])
    return found


def test_every_setting_exists() -> None:
    from mpsearch_api.settings import Settings

    known = {f"MPSEARCH_{name.upper()}" for name in Settings.model_fields}
    used = {v for name in PODS for v in _environment(name) if v.startswith("MPSEARCH_")}
    assert {"MPSEARCH_DATABASE_URL", "MPSEARCH_RAY_ADDRESS"} <= used <= known


def test_the_settings_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    from mpsearch_api.settings import Settings

    common = next(o for o in OBJECTS if _name(o) == "ConfigMap/mpsearch")
    for variable, value in common["data"].items():
        monkeypatch.setenv(variable, value)
    found = Settings()
    assert found.executor == "ray"
    # KubeRay names the head's service after the cluster.
    assert found.ray_address == f"{RAY['metadata']['name']}-head-svc:6379"


def test_where_jobs_run_nothing_of_the_database_is_known() -> None:
    for name in WORKERS:
        assert not [v for v in _environment(name) if v.startswith("MPSEARCH_")]
        assert "mpsearch-database" not in yaml.dump(PODS[name])


def test_ray_asks_for_its_token() -> None:
    assert RAY["spec"]["authOptions"] == {"mode": "token"}
    container = PODS["Deployment/mpsearch-dispatcher"]["spec"]["containers"][0]
    given = {variable["name"]: variable for variable in container["env"]}
    assert given["RAY_AUTH_MODE"]["value"] == "token"
    # KubeRay makes a secret with the cluster's name.
    reference = given["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": RAY["metadata"]["name"], "key": "auth_token"}


def test_ray_is_the_version_of_the_image() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
    )
    assert RAY["spec"]["rayVersion"] == pins["ray"]


def test_commands_exist() -> None:
    pytest.importorskip("ray")
    from ray.scripts.scripts import cli, start

    scripts = {found.name for found in metadata.entry_points(group="console_scripts")}
    assert {"ray", "mpsearch"} <= scripts
    assert "health-check" in cli.commands
    dispatcher = PODS["Deployment/mpsearch-dispatcher"]["spec"]["containers"][0]["args"][0]
    options = {option.removeprefix("--") for p in start.params for option in p.opts}
    used = {
        word.partition("=")[0].removeprefix("--")
        for word in dispatcher.partition("&&")[0].split()
        if word.startswith("--")
    }
    for group in [RAY["spec"]["headGroupSpec"], *RAY["spec"]["workerGroupSpecs"]]:
        used |= set(group["rayStartParams"])
    assert used <= options
    assert dispatcher.endswith("exec python -m mpsearch_api.execution.dispatcher")


def test_secrets_are_named_but_not_given() -> None:
    assert not [found for found in OBJECTS if found["kind"] == "Secret"]
    for template in TEMPLATES:
        assert set(template["stringData"].values()) == {""}
    made = {template["metadata"]["name"] for template in TEMPLATES} | {RAY["metadata"]["name"]}
    asked = set(
        re.findall(r"secret(?:Ref|KeyRef)?:\s+(?:secretName|name|key): (\S+)", yaml.dump(OBJECTS))
    )
    assert asked <= made | {"auth_token", "url"}


def test_policies_select_pods_that_exist() -> None:
    components = {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in PODS.values()}
    text = (FOLDER / "network.yaml").read_text()
    named = set(re.findall(r"component: (\S+)", text))
    for values in re.findall(r"values: \[([^\]]*)\]", text):
        named |= {value.strip() for value in values.split(",")}
    assert named == components


class TestReadiness:
    """The probe that the API's pods run, against a server that gives the answers of /readyz."""

    @pytest.fixture
    def probe(self) -> Iterator[Any]:
        faults: dict[str, str] = {}

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps({"status": "…", "faults": faults})
                self.send_response(503 if faults else 200)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                return

        server = HTTPServer(("127.0.0.1", 0), Answers)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        container = PODS["Deployment/mpsearch-api"]["spec"]["containers"][0]
        script = container["readinessProbe"]["exec"]["command"][2]
        script = script.replace(":8000", f":{server.server_port}")

        def run(*parts: str) -> int:
            faults.clear()
            faults.update(dict.fromkeys(parts, "not ready"))
            return subprocess.run([sys.executable, "-c", script], capture_output=True).returncode

        yield run
        server.shutdown()
        server.server_close()

    def test_a_replica_is_ready_where_nothing_is_wrong(self, probe: Any) -> None:
        assert probe() == 0

    def test_jobs_may_wait_for_dispatchers_and_ray(self, probe: Any) -> None:
        assert probe("dispatcher") == 0

    @pytest.mark.parametrize("part", ["database", "blobs", "catalogue"])
    def test_a_replica_without_its_own_parts_is_not(self, probe: Any, part: str) -> None:
        assert probe(part) != 0
