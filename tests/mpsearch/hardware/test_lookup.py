from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.errors import DocumentError, InputError, MismatchError, UnknownNameError
from mpsearch.hardware.device import device
from mpsearch.hardware.lookup import as_hardware, price_profile
from mpsearch.hardware.shapes import shape_of
from mpsearch.hardware.table import CostTable
from mpsearch.menu import Wishes
from mpsearch.models.layers import find_layers

MENU = ["w4a4", "w4a8", "w8a8", "float"]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Flatten(),
        nn.Linear(8 * 16, 10),
    )


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])


def table(**changes) -> CostTable:
    rows = [
        {"op": op, "shape": shape, "option": option, "values": {"latency": cost * factor}}
        for option, factor in (("w4a8", 1.0), ("w8a8", 2.0), ("float", 4.0))
        for op, shape, cost in (
            ("conv2d", {"macs": 1000, "groups": 1}, 1.0),
            ("conv2d", {"macs": 10_000, "groups": 1}, 10.0),
            ("conv2d", {"macs": 1000, "groups": 8}, 3.0),
            ("linear", {"in_features": 128, "out_features": 10}, 0.5),
        )
    ]
    content = {
        "device": "npu",
        "provenance": "a bench",
        "licence": "own",
        "origin": "measured",
        "units": {"latency": "us"},
        "entries": rows,
        "unavailable": [{"option": "w4a4", "reason": "4-bit activations are not supported"}],
    }
    return CostTable.checked(content | changes, "table")


def test_prices_of_a_table_say_how_each_was_found(model, data) -> None:
    costs = mp.price(model, data[0], MENU, table())
    macs = 3 * 8 * 9 * 16  # 3,456, between 1,000 and 10,000: proportional in both
    assert costs.values["latency"][0, 2] == pytest.approx(2e-6 * macs / 1000)
    assert costs.values["latency"][2].tolist()[1:] == pytest.approx([0.5e-6, 1e-6, 2e-6])
    assert np.isnan(costs.values["latency"][:, 0]).all()
    assert costs.origins["latency"] == [
        ["unavailable"] + ["interpolated"] * 3,
        ["unavailable"] + ["extrapolated"] * 3,
        ["unavailable"] + ["measured"] * 3,
    ]
    assert costs.extrapolated == {"latency": ["1"]}
    assert "extrapolated" in costs.warnings[0]
    assert costs.provenance["latency"] == "npu: a bench"
    assert costs.hardware == "npu"
    assert costs.baseline["latency"] == pytest.approx(np.nansum(costs.values["latency"][:, 3]))
    assert mp.Costs.parse(costs.model_dump_json(), "costs") is not None


def test_what_a_device_cannot_run_is_not_offered(model, data) -> None:
    costs = mp.price(model, data[0], MENU, table())
    assert costs.unavailable["0"] == {"w4a4": "4-bit activations are not supported"}
    loss = np.array([[0.0, 2.0, 1.0, 0.5]] * 3)
    profile = mp.Profile.from_arrays(loss, groups=costs.groups, options=MENU)
    answer = mp.allocate(profile, costs, {"weight_memory": "1x"})
    assert set(answer.layers.values()) == {"float"}  # w4a4 would lose less
    assert any("extrapolated" in warning for warning in answer.warnings)
    only = mp.Profile.from_arrays(
        loss, groups=costs.groups, options=MENU, allowed=np.array([[1, 0, 0, 0]] * 3, bool)
    )
    with pytest.raises(InputError, match="group 0 is left without an option on npu: w4a4: 4-bit"):
        mp.allocate(only, costs, {"weight_memory": "1x"})


def test_several_budgets_hold_at_once_and_have_shadow_prices(model, data) -> None:
    result = mp.search(
        model,
        data,
        ["w4a8", "w8a8"],
        {"latency": "90%", "weight_memory": "60%", "activation_memory": "0.9x"},
        hardware=table(),
        estimator="sqnr",
        seed=0,
    )
    assert list(result.budgets) == ["latency", "weight_memory", "activation_memory"]
    for use in result.budgets.values():
        assert use.usage <= use.limit
    assert result.shadow_prices
    assert result.verification is not None


def test_a_kernel_without_a_row_is_unavailable_not_guessed(model, data) -> None:
    rows = [entry.model_dump() for entry in table().entries if entry.shape.get("groups") != 8]
    costs = mp.price(model, data[0], ["w8a8"], table(entries=rows), resources=["latency"])
    assert "no conv2d with grouped 1" in costs.unavailable["1"]["w8a8"]
    whole = mp.price(model, data[0], ["w8a8"], table(entries=rows), wishes=Wishes(group=["[01]"]))
    assert whole.unavailable == {"[01]": costs.unavailable["1"]}


def test_devices_price_live_models_by_roofline(model, data) -> None:
    costs = mp.price(model, data[0], ["w4a4", "w8a8", "w4a8"], "nvidia-t4", batch=2)
    layers = {layer.name: layer for layer in find_layers(model, (data[0], None)).layers}
    from mpsearch.formats import parse_option

    expected = device("nvidia-t4").latency(layers["3"], parse_option("w8a8"), 2)
    assert costs.values["latency"][2, 1] == expected
    assert costs.origins["latency"][0] == ["roofline", "roofline", "unavailable"]
    assert set(costs.unavailable) == {"0", "1", "3"}
    assert "batch of 2" in costs.provenance["activation_memory"]


def test_a_batch_that_was_not_measured_is_refused(model, data) -> None:
    with pytest.raises(InputError, match="measured with batch 8, not 2"):
        mp.price(model, data[0], ["w8a8"], table(batch=8), batch=2)
    assert mp.price(model, data[0], ["w8a8"], table(batch=8), batch=8) is not None


def test_saved_scores_are_priced_by_tables_that_name_their_layers() -> None:
    rows = [
        {"layer": name, "option": "w8a8", "values": {"latency": cost}}
        for name, cost in (("a", 1.0), ("b", 2.0), ("c", 4.0))
    ]
    profile = mp.Profile.from_arrays(
        [[1.0], [1.0]], groups=["ab", "c"], options=["w8a8"], members={"ab": ["a", "b"]}
    )
    costs = price_profile(profile, table(entries=rows))
    assert costs.values["latency"].ravel().tolist() == pytest.approx([3e-6, 4e-6])
    other = mp.Profile.from_arrays([[1.0]], groups=["x"], options=["w8a8"])
    with pytest.raises(MismatchError, match="no row for any layer of the profile, such as x"):
        price_profile(other, table(entries=rows))


def test_hardware_is_a_name_a_file_or_the_thing_itself(tmp_path) -> None:
    assert as_hardware("nvidia-t4") == device("nvidia-t4")
    assert as_hardware(table().save(tmp_path / "t.json")) == table()
    assert as_hardware(device("nvidia-t4").save(tmp_path / "d.json")) == device("nvidia-t4")
    assert as_hardware(table()) == table()
    with pytest.raises(UnknownNameError, match="nvidia-t4"):
        as_hardware("nvidia-t5")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DocumentError, match="cannot read"):
        as_hardware(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 9, 8), {"stride_height": 2, "out_width": 4}),
        (nn.Conv2d(4, 6, 3), (4, 5, 5), {"stride_height": 1, "out_height": 3, "groups": 1}),
        # Sizes alone would allow a stride of 1 with less padding.
        (nn.Conv2d(4, 6, 3, stride=(3, 2)), (4, 3, 3), {"stride_height": 3, "stride_width": 2}),
        (nn.Conv2d(4, 8, 1, stride=2, groups=2), (4, 8, 8), {"stride_width": 2, "groups": 2}),
        (nn.Conv1d(4, 6, 5, padding=2), (4, 20), {"kernel_width": 5, "stride_width": 1}),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 5, 5), {"stride_height": 2, "out_height": 10}),
        (nn.Linear(7, 5), (3, 7), {"in_features": 7, "out_features": 5, "rows": 6}),
    ],
)
def test_shapes_of_layers_are_written_as_their_operations_have_them(
    module, shape, expected
) -> None:
    (layer,) = find_layers(nn.Sequential(module), (torch.zeros(1, *shape), None)).layers
    found = shape_of(layer, 2)
    assert {key: found[key] for key in expected} == expected
    assert found["macs"] == 2 * layer.macs
