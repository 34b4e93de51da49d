"""Models by their name on the hub: a hub of this machine, asked by the real client."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

pytest.importorskip("huggingface_hub")
transformers = pytest.importorskip("transformers")

COMMIT = "a" * 40


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A repository of a small model, with files beside it that must not be fetched."""
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "modeling_evil.py").write_text("raise SystemExit('run')")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    return folder


class _Hub(BaseHTTPRequestHandler):
    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        self.asked.append(self.path)
        files = {each.name: each.read_bytes() for each in self.folder.iterdir()}
        known = [
            {"type": "file", "path": name, "size": len(content), "oid": _digest(content)}
            for name, content in files.items()
        ]
        name = self.path.rpartition("/")[2]
        if self.path.startswith("/api/models/org/tiny/tree/"):
            self._send(json.dumps(known).encode(), body)
        elif self.path.startswith("/api/models/org/tiny"):
            self._send(json.dumps({"id": "org/tiny", "sha": COMMIT}).encode(), body)
        elif self.path == f"/org/tiny/resolve/{COMMIT}/{name}" and name in files:
            self._send(files[name], body)
        else:
            self.send_error(404)

    def _send(self, content: bytes, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{_digest(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub(repository):
    kind = type("Hub", (_Hub,), {"folder": repository, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def _load(hub, cache: Path, spec: str, allowed: str | None) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys, torch\n"
        "from mpsearch.models.registry import as_model\n"
        "module = as_model(sys.argv[1]).module\n"
        "print('sum', float(sum(p.double().sum() for p in module.parameters())))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "MPSEARCH_ALLOW_DOWNLOADS"}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    if allowed is not None:
        environment["MPSEARCH_ALLOW_DOWNLOADS"] = allowed
    return subprocess.run(
        [sys.executable, "-c", code, spec],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.slow
def test_a_model_is_downloaded_only_when_that_is_allowed_and_without_its_code(
    hub, repository, tmp_path
) -> None:
    refused = _load(hub, tmp_path, "transformers:org/tiny", None)
    assert "not downloaded unless" in refused.stderr
    assert "MPSEARCH_ALLOW_DOWNLOADS=1" in refused.stderr
    assert hub.RequestHandlerClass.asked == []
    loaded = _load(hub, tmp_path, f"transformers:org/tiny?revision={COMMIT}", "1")
    assert loaded.returncode == 0, loaded.stderr
    wanted = transformers.BertModel.from_pretrained(repository, add_pooling_layer=True)
    total = float(sum(p.detach().double().sum() for p in wanted.parameters()))
    assert float(loaded.stdout.partition("sum ")[2]) == pytest.approx(total)
    fetched = {each.rpartition("/")[2] for each in hub.RequestHandlerClass.asked if COMMIT in each}
    assert {"config.json", "model.safetensors"} <= fetched
    assert not fetched & {"modeling_evil.py", "pytorch_model.bin"}
    assert not list(tmp_path.rglob("*.py"))
    missing = _load(hub, tmp_path, "transformers:org/none", "1")
    assert "cannot be downloaded" in missing.stderr
