"""Images in a ZIP file give what the folder that was packed gives."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from mpsearch.errors import DataError
from mpsearch.models.registry import as_data
from mpsearch.models.specs import SpecPolicy


@pytest.fixture
def pictures(tmp_path) -> Path:
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "pictures"
    for label, name, colour in (("cat", "b", 255), ("cat", "a", 0), ("ant", "c", 51)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        image.new("RGB", (12, 8), (colour, 0, 255)).save(folder / label / f"{name}.png")
    (folder / "cat" / "notes.txt").write_text("no image")
    return folder


@pytest.mark.parametrize("base", [None, "pictures"])
def test_a_packed_folder_gives_the_same_data(pictures: Path, base: str | None) -> None:
    root = pictures if base is None else pictures.parent
    packed = Path(shutil.make_archive(str(pictures.parent / "packed"), "zip", root, base))
    from_folder, from_zip = (
        as_data(f"images:{path}?size=4&mean=0.5") for path in (pictures, packed)
    )
    assert torch.equal(from_folder.inputs, from_zip.inputs)
    assert torch.equal(from_folder.targets, from_zip.targets)


def test_an_uploaded_zip_file_is_images_without_any_path(pictures: Path, tmp_path) -> None:
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", pictures)
    policy = SpecPolicy(files={"photos.zip": Path(packed)})
    data = as_data("images:upload:photos.zip?size=8", policy)
    assert data.targets.tolist() == [0, 1, 1]
    assert data.name == "upload:photos.zip"


def test_packed_images_without_sub_folders_have_no_labels(pictures: Path, tmp_path) -> None:
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", pictures / "cat")
    assert as_data(f"images:{packed}?size=4").targets is None


def test_packed_images_at_several_depths_are_no_classes(pictures: Path, tmp_path) -> None:
    (pictures / "cat" / "kitten").mkdir()
    shutil.copy(pictures / "cat" / "a.png", pictures / "cat" / "kitten")
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", pictures)
    with pytest.raises(DataError, match="several depths"):
        as_data(f"images:{packed}")


def test_files_that_macos_adds_are_left_out(pictures: Path, tmp_path) -> None:
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", pictures)
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("__MACOSX/cat/._a.png", b"no image")
    assert len(as_data(f"images:{packed}?size=4")) == 3
