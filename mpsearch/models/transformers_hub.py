"""Finding the folder of a `transformers:` spec: on this machine, or from the hub where allowed."""

from __future__ import annotations

import re
from pathlib import Path

from mpsearch.errors import DependencyError, InputError
from mpsearch.models.specs import DOWNLOADS_VARIABLE, UPLOAD, SpecPolicy

__all__ = ["model_folder"]

_ID = re.compile(r"[A-Za-z0-9_-][\w.-]*/[A-Za-z0-9_-][\w.-]*")
WANTED_FILES = [
    "config.json",
    "modules.json",
    "1_Pooling/config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
]
"""Configuration and safetensors; code and pickled weights of a repository are never fetched."""


def model_folder(body: str, policy: SpecPolicy) -> Path:
    """Find the folder that a spec means; download it only if it is none and that is allowed.

    Args:
        body: A folder, or `ORGANIZATION/NAME` on the hub, with `?revision=REV` for a commit, branch
            or tag.
        policy: What the spec may do.

    Returns:
        The folder.

    Raises:
        InputError: No such folder, and nothing may be downloaded; or a broken name.
    """
    name, mark, query = body.partition("?")
    named = _ID.fullmatch(name) is not None
    uploaded = body.partition(":")[0] == UPLOAD
    if uploaded or (policy.allow_paths and Path(body).expanduser().is_dir()):
        return policy.path(body)
    if policy.allow_downloads and named:
        if mark and not re.fullmatch(r"revision=[\w./-]+", query):
            raise InputError(f"model {body!r}: only revision=REV may stand after '?'")
        return _downloaded(name, query.removeprefix("revision=") or None)
    path = policy.path(body)
    hint = (
        f"; to download from the hub, set {DOWNLOADS_VARIABLE}=1 or give "
        "SpecPolicy(allow_downloads=True)"
    )
    raise InputError(f"no folder {path}: models are not downloaded unless that is allowed{hint}")


def _downloaded(name: str, revision: str | None) -> Path:
    """Fetch a repository's configuration and weights into the hub's cache.

    Returns:
        The folder in the cache.

    Raises:
        DependencyError: huggingface_hub is missing, or the hub does not give the files.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise DependencyError(
            f"to download {name}, huggingface_hub is needed; run: pip install 'mpsearch[llm]'"
        ) from error
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=WANTED_FILES
        )
    # The client raises its own, its transport's and the system's errors.
    except Exception as error:
        first_line = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise DependencyError(f"{name} cannot be downloaded: {first_line[:300]}") from error
    return Path(folder)
