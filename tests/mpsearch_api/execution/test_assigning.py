"""Names in requests become files of the service's own, or are refused."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mpsearch.errors import InputError
from mpsearch.schemas.jobs import Execution, JobRequest
from mpsearch.schemas.uploads import Stored
from mpsearch_api.blobs import open_blobs
from mpsearch_api.blobs.port import BlobStore
from mpsearch_api.execution.assigning import Assigner, limits_of, memory_of, seconds_of
from mpsearch_api.execution.port import Assignment
from mpsearch_api.settings import Settings
from mpsearch_api.store.ids import new_id
from mpsearch_api.store.port import Claim


@dataclass
class Shelf:
    """Stored objects of the tenant `mine`."""

    blobs: BlobStore
    objects: dict[str, Stored]

    def put(self, kind: str, form: str, content: bytes, architecture: str | None = None) -> str:
        blob = self.blobs.put([content])
        prefix = {"model": "mdl", "dataset": "dat", "hardware": "hw"}[kind]
        stored = Stored(
            id=new_id(prefix, 1e9),
            kind=kind,
            name="../../etc/passwd@:?.onnx",
            format=form,
            architecture=architecture,
            size=blob.size,
            sha256=blob.sha256,
            created=datetime.now(UTC),
        )
        self.objects[stored.id] = stored
        return stored.id

    def get_stored(self, tenant: str | None, name: str) -> Stored | None:
        return self.objects.get(name) if tenant == "mine" else None


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


@pytest.fixture
def shelf(settings: Settings) -> Shelf:
    return Shelf(open_blobs(settings), {})


@pytest.fixture
def assign(settings: Settings, shelf: Shelf, tmp_path: Path):
    def make(tenant: str = "mine", chosen: Settings = settings, **fields: object) -> Assignment:
        request = {"model": "digits-resnet", "data": "digits", "budget": {"bops": "3%"}} | fields
        folder = tmp_path / f"attempt{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        claim = Claim("job", tenant, 1, "worker", JobRequest(**request))
        return Assigner(chosen, shelf, shelf.blobs).assign(claim, folder, tmp_path / "cache")

    return make


def test_bundled_names_and_specs_stay_as_they_are(assign) -> None:
    found = assign(model="torchvision:resnet18", data="synthetic?count=8", hardware="nvidia-t4")
    assert (found.model, found.data) == ("torchvision:resnet18", "synthetic?count=8")
    assert found.hardware == "nvidia-t4"
    assert found.files == {}
    assert not found.trusted


def test_ids_become_files_under_names_of_the_service_s_own(assign, shelf) -> None:
    weights = shelf.put("model", "safetensors", b"weights", "torchvision:resnet18")
    data = shelf.put("dataset", "npz", b"data")
    found = assign(model=weights, data=data)
    assert found.model == f"torchvision:resnet18@upload:{weights}.safetensors"
    assert found.data == f"upload:{data}.npz"
    assert {name: path.read_bytes() for name, path in found.files.items()} == {
        f"{weights}.safetensors": b"weights",
        f"{data}.npz": b"data",
    }


def test_ids_may_stand_inside_specs(assign, shelf) -> None:
    weights = shelf.put("model", "safetensors", b"w")
    photos, words = shelf.put("dataset", "zip", b"z"), shelf.put("dataset", "json", b"{}")
    found = assign(model=f"digits-resnet@{weights}", data=f"images:{photos}?size=8&x={words}")
    assert found.model == f"digits-resnet@upload:{weights}.safetensors"
    assert found.data == f"images:upload:{photos}.zip?size=8&x=upload:{words}.json"
    assert len(found.files) == 3


def test_a_stored_table_is_a_file_with_the_suffix_of_its_type(assign, shelf) -> None:
    table = shelf.put("hardware", "csv", b"layer,option\n")
    hardware = assign(hardware=table).hardware
    assert isinstance(hardware, Path)
    assert hardware.suffix == ".csv"
    assert hardware.read_bytes() == b"layer,option\n"


def test_another_tenant_s_objects_do_not_exist(assign, shelf) -> None:
    weights = shelf.put("model", "onnx", b"w")
    table = shelf.put("hardware", "json", b"{}")
    for fields in ({"model": weights}, {"hardware": table}, {"data": f"images:{weights}"}):
        with pytest.raises(InputError, match="unknown"):
            assign(tenant="other", **fields)


def test_a_model_is_no_data_set(assign, shelf) -> None:
    weights = shelf.put("model", "onnx", b"w")
    with pytest.raises(InputError, match="unknown dataset"):
        assign(data=weights)


@pytest.mark.parametrize("name", ["/etc/passwd", "./table.json", "upload:x", "hw_", "nvidia-t5"])
def test_text_that_names_no_hardware_is_refused_before_any_file_is_opened(assign, name) -> None:
    with pytest.raises(InputError, match="unknown hardware"):
        assign(hardware=name)


def test_archives_are_trusted_and_run_cut_off_even_where_downloads_are_allowed(
    assign, shelf, settings
) -> None:
    downloads = settings.model_copy(update={"hub_downloads": True})
    archive = assign(chosen=downloads, model=shelf.put("model", "pt2", b"program"))
    assert archive.trusted
    assert limits_of(archive, downloads).isolated
    assert not limits_of(archive, downloads).network
    assert limits_of(assign(chosen=downloads), downloads).network
    assert not limits_of(assign(), settings).network
    assert not limits_of(assign(), settings).isolated


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GiB", 4 * 2**30), ("512 MB", 512_000_000), (2**30, 2**30), ("1073741824", 2**30)],
)
def test_memory_is_read_in_any_unit(settings, text, size) -> None:
    request = _request(execution=Execution(memory=text, cpus=3, gpus=1, time_limit=7))
    assert memory_of(request, settings) == size
    assert seconds_of(request, settings) == 7


@pytest.mark.parametrize("text", ["1 MB", "17GiB", "0.5x", "3 s", "much", "", -5])
def test_memory_that_is_none_or_out_of_bounds_is_refused(settings, text) -> None:
    with pytest.raises(InputError, match="memory"):
        memory_of(_request(execution=Execution(memory=text)), settings)


def test_limits_are_those_asked_for(assign, settings) -> None:
    execution = Execution(memory="2GiB", cpus=3, gpus=1, time_limit=70)
    found = limits_of(assign(execution=execution), settings)
    assert (found.memory, found.cpus, found.gpus, found.seconds) == (2**31, 3, 1, 70)
    assert found.niceness == settings.niceness
    with pytest.raises(InputError, match="time_limit"):
        seconds_of(_request(execution=Execution(time_limit=90_000)), settings)


def _request(**fields: object) -> JobRequest:
    return JobRequest(model="m", data="d", budget={"bops": "3%"}, **fields)
