"""`transformers:FOLDER` and `sentence-transformers:FOLDER`: models saved by Hugging Face's tools.

Read are `config.json` and safetensors. Code that comes with a model is never run, pickled weights
are never read, and nothing is downloaded unless the policy allows it (`transformers_hub`).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.errors import DependencyError, ModelError
from mpsearch.models.json_file import read_json, read_json_object
from mpsearch.models.named import InputForm, NamedModel
from mpsearch.models.specs import ModelSpec, SpecPolicy, scheme
from mpsearch.models.transformers_folder import CheckedFolder, check_folder
from mpsearch.models.transformers_hub import model_folder
from mpsearch.models.weights_file import check_finite
from mpsearch.process_wide import ProcessWide

__all__ = [
    "PaddingMask",
    "SentenceEncoder",
    "ShiftedDecoder",
    "load_sentence_encoder",
    "load_transformers",
]

TOKENS = 32
"""Length of the token inputs that synthetic data has."""
SLACK = 2**22
"""Values that a model may have beyond those in its files: buffers, tied heads of small models."""


class PaddingMask:
    """Forward pre-hook that masks padding when a model is called with token ids alone."""

    def __init__(self, padding: int) -> None:
        """Remember the token.

        Args:
            padding: Id of the padding token.
        """
        self._padding = padding

    def __call__(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Add the mask, unless the caller gave one or nothing is padded."""
        ids = args[0] if args else kwargs.get("input_ids")
        if len(args) <= 1 and "attention_mask" not in kwargs and isinstance(ids, Tensor):
            mask = ids != self._padding
            if not bool(mask.all()):
                kwargs = kwargs | {"attention_mask": mask.long()}
        return args, kwargs


class ShiftedDecoder:
    """Forward pre-hook for encoder-decoders that are called with token ids alone.

    The decoder then reads the same tokens behind its start token, as in training it would read the
    wanted ones (teacher forcing).
    """

    def __init__(self, start: int) -> None:
        """Remember the token.

        Args:
            start: Id of the token that the decoder starts with.
        """
        self._start = start

    def __call__(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Add the decoder's tokens, unless the caller gave more than token ids and a mask."""
        ids = args[0] if args else kwargs.get("input_ids")
        if len(args) <= 1 and isinstance(ids, Tensor) and not any("decoder" in k for k in kwargs):
            start = ids.new_full((len(ids), 1), self._start)
            kwargs = kwargs | {"decoder_input_ids": torch.cat([start, ids[:, :-1]], dim=1)}
        return args, kwargs


class SentenceEncoder(nn.Module):
    """A token encoder whose outputs are averaged over the tokens and scaled to length one.

    Reimers and Gurevych, 2019, "Sentence-BERT", section 3 (mean pooling).
    """

    def __init__(self, encoder: nn.Module, padding: int | None, normalized: bool) -> None:
        """Put the parts together.

        Args:
            encoder: Token ids to `last_hidden_state` `[batch, tokens, width]`.
            padding: Id of the padding token, which is left out of the mean; None for none.
            normalized: Whether embeddings are scaled to length one.
        """
        super().__init__()
        self.encoder = encoder
        self.padding = padding
        self.normalized = normalized

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embed sentences.

        Args:
            input_ids: Token ids `[batch, tokens]`.

        Returns:
            Embeddings `[batch, width]`.
        """
        hidden: Tensor = self.encoder(input_ids).last_hidden_state
        kept = torch.ones_like(input_ids) if self.padding is None else input_ids != self.padding
        weights = kept.to(hidden.dtype).unsqueeze(-1)
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
        return nn.functional.normalize(mean, dim=-1) if self.normalized else mean


@scheme("transformers")
def load_transformers(spec: ModelSpec, policy: SpecPolicy) -> NamedModel:
    """Load the model in a folder, in the class that its configuration names, as float32.

    Args:
        spec: The folder.
        policy: Has to allow paths.

    Returns:
        The model; called with token ids alone, it masks padding itself, and an encoder-decoder
        gives its decoder the same tokens.
    """
    module, folder, notes = _load(spec, policy)
    padding = _padding(folder.config)
    if padding is not None:
        module.register_forward_pre_hook(PaddingMask(padding), with_kwargs=True)
    start = folder.config.get("decoder_start_token_id")
    if folder.config.get("is_encoder_decoder") and type(start) is int:
        module.register_forward_pre_hook(ShiftedDecoder(start), with_kwargs=True)
        notes = (*notes, f"{spec.text}: given token ids alone, its decoder reads the same tokens")
    return NamedModel(spec.text, module, _inputs(folder.config), notes)


@scheme("sentence-transformers")
def load_sentence_encoder(spec: ModelSpec, policy: SpecPolicy) -> NamedModel:
    """Load a sentence encoder: an encoder, mean pooling and, where declared, normalization.

    Args:
        spec: The folder, with `modules.json` as sentence-transformers saves it.
        policy: Has to allow paths.

    Returns:
        The model, from token ids to embeddings.

    Raises:
        ModelError: It pools in another way, or has modules of other types.
    """
    path = model_folder(spec.body, policy)
    normalized = _is_normalized(path)
    pooling = read_json_object(path / "1_Pooling" / "config.json")
    used = [key for key, value in pooling.items() if key.startswith("pooling_mode") and value]
    if used != ["pooling_mode_mean_tokens"]:
        raise ModelError(f"{path} pools by {', '.join(used) or 'nothing'}; only the mean is known")
    module, folder, notes = _load(spec, policy, add_pooling_layer=False)
    padding = _padding(folder.config)
    if padding is not None:
        module.register_forward_pre_hook(PaddingMask(padding), with_kwargs=True)
    encoder = SentenceEncoder(module, padding, normalized)
    return NamedModel(spec.text, encoder, _inputs(folder.config), notes)


def _is_normalized(path: Path) -> bool:
    """Read the list of modules: an encoder, a pooling and perhaps a normalization.

    Returns:
        Whether embeddings are scaled to length one.

    Raises:
        ModelError: Any other list.
    """
    listed = read_json(path / "modules.json")
    kinds = [str(each.get("type", "")).rpartition(".")[2] for each in listed]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ModelError(
            f"{path / 'modules.json'} lists {kinds}; known are Transformer, Pooling and Normalize"
        )
    return len(kinds) == 3


def _load(
    spec: ModelSpec, policy: SpecPolicy, **wanted: Any
) -> tuple[nn.Module, CheckedFolder, tuple[str, ...]]:
    """Load the module of a folder.

    Args:
        spec: The folder.
        policy: Has to allow paths.
        **wanted: Arguments of the class, given where it takes them.

    Returns:
        The module, its folder, and notes.

    Raises:
        DependencyError: transformers is not installed.
        ModelError: The folder is refused, or weights and configuration do not belong together.
    """
    if spec.weights is not None:
        raise ModelError(f"{spec.text}: the folder carries its own weights; leave out @…")
    folder = check_folder(model_folder(spec.body, policy))
    try:
        import transformers
    except ImportError as error:
        raise DependencyError(
            f"{spec.text} needs transformers, which is not installed; "
            "run: pip install 'mpsearch[llm]'"
        ) from error
    offline = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder.path), **offline)
        config.use_cache = False
        kind = _class_of(transformers, config)
        arguments = {k: v for k, v in wanted.items() if k in inspect.signature(kind).parameters}
        _check_size(kind, config, folder)
        with _QUIET:
            module, info = kind.from_pretrained(
                str(folder.path),
                config=config,
                use_safetensors=True,
                output_loading_info=True,
                dtype=torch.float32,
                **offline,
                **arguments,
            )
    except ModelError:
        raise
    # transformers raises every kind of error on a configuration that makes no sense.
    except Exception as error:
        first_line = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ModelError(f"{folder.path} cannot be loaded: {first_line[:300]}") from error
    _check_loaded(folder, info)
    check_finite(dict(module.state_dict()), str(folder.path))
    unused = sorted(info["unexpected_keys"])
    notes: tuple[str, ...] = ()
    if unused:
        notes = (f"{spec.text}: {len(unused)} tensors of the files are not used: {_list(unused)}",)
    return module, folder, notes


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep its report and bars off the terminal; what they say is in our notes and errors."""
    import transformers

    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


_QUIET = ProcessWide(_quiet)


def _class_of(transformers: Any, config: Any) -> Any:  # noqa: ANN401
    """Choose the class named by the configuration if it is one of transformers' own for it."""
    for name in config.architectures or ():
        kind: Any = getattr(transformers, str(name), None)
        is_model = inspect.isclass(kind) and issubclass(kind, transformers.PreTrainedModel)
        if is_model and kind.config_class is type(config):
            return kind
    return transformers.MODEL_MAPPING[type(config)]


def _check_size(kind: Any, config: Any, folder: CheckedFolder) -> None:  # noqa: ANN401
    """Build the model without memory first: a configuration may ask for any amount of it."""
    with torch.device("meta"):
        built = kind(copy.deepcopy(config))
    values = sum(each.numel() for each in (*built.parameters(), *built.buffers()))
    if values > folder.weights + SLACK:
        raise ModelError(
            f"{folder.path / 'config.json'} describes {values:,} weights, the files hold "
            f"{folder.weights:,}"
        )


def _check_loaded(folder: CheckedFolder, info: dict[str, Any]) -> None:
    problems = [f"missing {name}" for name in sorted(info["missing_keys"])]
    problems += [f"mis-shaped {each}" for each in sorted(map(str, info["mismatched_keys"]))]
    problems += [f"unreadable {each}" for each in info.get("error_msgs") or ()]
    if problems:
        raise ModelError(f"{folder.path} does not fit its config.json: {_list(problems)}")


def _list(names: list[str]) -> str:
    return "; ".join(names[:8]) + (f"; … and {len(names) - 8} more" if len(names) > 8 else "")


def _padding(config: dict[str, Any]) -> int | None:
    """Give the padding token, unless it has another meaning, too."""
    padding = config.get("pad_token_id")
    others = [config.get(f"{name}_token_id") for name in ("bos", "eos")]
    meanings = [x for each in others for x in (each if isinstance(each, list) else [each])]
    return padding if isinstance(padding, int) and padding not in meanings else None


def _inputs(config: dict[str, Any]) -> InputForm | None:
    vocabulary = config.get("vocab_size")
    if isinstance(vocabulary, int) and vocabulary > 0:
        longest = config.get("max_position_embeddings", TOKENS)
        return InputForm((min(TOKENS, longest if type(longest) is int else TOKENS),), vocabulary)
    size, channels = config.get("image_size"), config.get("num_channels", 3)
    if type(size) is int and type(channels) is int:
        return InputForm((channels, size, size))
    return None
