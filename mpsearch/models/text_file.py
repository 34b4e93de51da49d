"""`text:FILE?tokenizer=…`: a text file as token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpsearch.errors import DataError, DependencyError, InputError
from mpsearch.models.data_specs import DataRequest, data_scheme, whole_number
from mpsearch.models.dataset import DataSet
from mpsearch.models.json_file import read_json_object

__all__ = ["load_text"]

MAX_TEXT = 256 * 2**20
MAX_TOKENIZER = 64 * 2**20
MAX_LENGTH = 2**17
SETTINGS = {"tokenizer", "length", "rows", "batch"}


@data_scheme("text")
def load_text(request: DataRequest) -> DataSet:
    """Load a text as rows of token ids.

    `rows=windows` (usual) joins the whole text and cuts it into windows of `length` tokens without
    padding; the targets are the tokens themselves, for the loss `next_token`. `rows=lines` makes
    every line that is not blank a row, cut at `length` and padded, without targets.

    Args:
        request: The file, in UTF-8, and the settings `tokenizer` (a folder with `tokenizer.json`,
            or that file), `length` (128), `rows` and `batch`.

    Returns:
        Token ids int64 `[n, length]`.

    Raises:
        InputError: No tokenizer is named, or another way to make rows is.
    """
    request.check_settings(SETTINGS)
    if "tokenizer" not in request.settings:
        raise InputError(f"data {request.text!r}: name the tokenizer: ?tokenizer=FOLDER")
    length = whole_number(request, "length", 128, MAX_LENGTH)
    rows = request.settings.get("rows", "windows")
    if rows not in {"windows", "lines"}:
        raise InputError(f"data {request.text!r}: rows={rows} is neither windows nor lines")
    text = _text(request.path)
    tokenizer, padding = _tokenizer(request.policy.path(request.settings["tokenizer"]))
    batch = whole_number(request, "batch", 16, 65_536)
    if rows == "lines":
        return DataSet(request.body, _lines(tokenizer, padding, text, length), batch_size=batch)
    ids = _windows(request, tokenizer, text, length)
    return DataSet(request.body, ids, ids, batch_size=batch)


def _text(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"no text file at {path}")
    size = path.stat().st_size
    if size > MAX_TEXT:
        raise DataError(f"{path} has {size:,} bytes, more than the {MAX_TEXT:,} allowed")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}") from error


def _tokenizer(path: Path) -> tuple[Any, int]:
    """Read `tokenizer.json`, which is plain data; no code of a tokenizer is run.

    Returns:
        The tokenizer, and the id to pad with: its own padding's, `[PAD]`'s or `<pad>`'s, or 0.

    Raises:
        DependencyError: The package tokenizers is not installed.
        DataError: No such file, or one that cannot be used.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise DependencyError(
            "text needs the package tokenizers, which is not installed; "
            "run: pip install 'mpsearch[llm]'"
        ) from error
    file = path / "tokenizer.json" if path.is_dir() else path
    read_json_object(file, MAX_TOKENIZER)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing narrower
        raise DataError(f"{file} is no tokenizer: {str(error)[:200]}") from error
    declared = tokenizer.padding
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if declared:
        return tokenizer, int(declared["pad_id"])
    known = (tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>"))
    return tokenizer, next((each for each in known if each is not None), 0)


def _lines(tokenizer: Any, padding: int, text: str, length: int) -> Tensor:  # noqa: ANN401
    tokenizer.enable_truncation(length)
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError("the text has no line that is not blank")
    encoded = [each.ids for each in tokenizer.encode_batch(lines)]
    longest = max(map(len, encoded))
    return torch.tensor([ids + [padding] * (longest - len(ids)) for ids in encoded])


def _windows(request: DataRequest, tokenizer: Any, text: str, length: int) -> Tensor:  # noqa: ANN401
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    count = len(ids) // length
    if count == 0:
        raise DataError(
            f"{request.body} has {len(ids)} tokens, less than one window of {length}; "
            "give more text or a smaller length"
        )
    return torch.tensor(ids[: count * length]).reshape(count, length)
