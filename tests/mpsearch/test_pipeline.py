from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.errors import DataError, MismatchError, ModelError
from mpsearch.menu import Wishes
from mpsearch.models.digits import digits, digits_resnet
from mpsearch.models.registry import NamedModel


@pytest.fixture
def small() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    inputs = torch.randn(64, 6)
    return model, (inputs, torch.randint(0, 3, (64,)))


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_search_leaves_the_model_as_it_was(small) -> None:
    model, data = small
    model.train()
    model[0].weight.requires_grad_(False)
    before = state_of(model)
    result = mp.search(model, data, ["w2a8", "w8a8"], {"weight_memory": "50%"})
    assert result.verification is not None
    assert model.training
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_same_seed_gives_the_same_search(small) -> None:
    model, data = small
    first, second = (
        mp.search(model, data, ["w3a8", "w8a8"], {"bops": "50%"}, estimator="hessian_trace", seed=3)
        for _ in range(2)
    )
    assert first.layers == second.layers
    assert first.predicted_loss == second.predicted_loss
    assert first.verification.baselines == second.verification.baselines


def test_what_verification_measures_is_what_apply_gives(small) -> None:
    model, (inputs, targets) = small
    result = mp.search(model, (inputs, targets), ["w2a4", "w4a4", "w8a8"], {"bops": "40%"})
    quantized = mp.apply(model, result)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(quantized(inputs).double(), targets)
    assert float(loss) == pytest.approx(result.verification.allocation.loss, rel=1e-6)
    assert not result.verification.held_out


def test_a_fresh_allocation_is_verified_beside_baselines_and_a_loaded_one_alone(
    small, tmp_path
) -> None:
    model, data = small
    menu = ["w3a8", "w8a8"]
    answer = mp.allocate(
        mp.profile(model, data, menu), mp.price(model, data, menu), {"bops": "50%"}
    )
    report = mp.verify(model, data, answer)
    assert [b.name for b in report.baselines] == ["uniform", "head-high", "tail-high", "random"]
    loaded = mp.verify(model, data, answer.save(tmp_path / "allocation.json"))
    assert loaded.baselines == []
    assert loaded.allocation == report.allocation


def test_prices_follow_the_formulas() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(64, 5))
    costs = mp.price(model, torch.zeros(1, 3, 8, 8), ["w4a8", "w8a8"])
    conv, linear = 3 * 4 * 9, 64 * 5
    conv_macs = conv * 4 * 4
    assert costs.values["bops"].tolist() == [
        [conv_macs * 4 * 8, conv_macs * 64],
        [linear * 32, linear * 64],
    ]
    # 16-bit scales, one for each output channel.
    assert costs.values["weight_memory"][0, 0] == pytest.approx((conv * 4 + 4 * 16) / 8)
    assert costs.values["weight_memory"][1, 1] == pytest.approx((linear * 8 + 5 * 16) / 8)
    assert costs.values["average_bits"].sum(axis=0) * (conv + linear) / 8 == pytest.approx(
        costs.values["weight_memory"].sum(axis=0)
    )
    assert costs.baseline == {
        "weight_memory": 4.0 * (conv + linear),
        "bops": (conv_macs + linear) * 32.0 * 32.0,
        "average_bits": 32.0,
        # The image and what the convolution makes of it.
        "activation_memory": 4.0 * (3 * 8 * 8 + 4 * 4 * 4),
    }
    assert costs.fixed == {"weight_memory": 4.0 * (4 + 5)}


def test_groups_add_scores_and_costs_of_their_layers(small) -> None:
    model, data = small
    menu = ["w3a8", "w8a8"]
    wishes = Wishes(group=["[24]"], skip=["0"])
    single = mp.profile(model, data, menu, "gradient_deviation")
    grouped = mp.profile(model, data, menu, "gradient_deviation", wishes=wishes)
    assert grouped.groups == ["[24]"]
    assert grouped.layers_of("[24]") == ["2", "4"]
    assert grouped.loss[0] == pytest.approx(single.loss[1:].sum(axis=0))
    costs = mp.price(model, data, menu)
    grouped_costs = mp.price(model, data, menu, wishes=wishes)
    for resource in ("weight_memory", "bops"):
        assert grouped_costs.values[resource][0] == pytest.approx(
            costs.values[resource][1:].sum(axis=0)
        )
    # The skipped layer stays in float32, beside the budget.
    assert grouped_costs.fixed["weight_memory"] == costs.fixed["weight_memory"] + 4.0 * 48


def test_standard_errors_of_groups_add_in_quadrature(small) -> None:
    model, data = small
    menu = ["w3a8"]
    single = mp.profile(model, data, menu, "hessian_trace", probes=8)
    grouped = mp.profile(model, data, menu, "hessian_trace", probes=8, wishes=Wishes(group=["*"]))
    assert grouped.stderr[0, 0] == pytest.approx(np.sqrt((single.stderr**2).sum()))


def test_the_float_option_scores_zero_everywhere(small) -> None:
    model, data = small
    for estimator in ("measured_loss", "gradient_deviation", "hessian_trace"):
        profile = mp.profile(model, data, ["w4", "float"], estimator)
        assert profile.loss[:, 1].tolist() == [0.0, 0.0, 0.0]


def test_a_profile_of_changed_weights_is_refused(small) -> None:
    model, data = small
    profile = mp.profile(model, data, ["w4a8", "w8a8"], "gradient_deviation")
    costs = mp.price(model, data, ["w4a8", "w8a8"])
    answer = mp.allocate(profile, costs, {"bops": "50%"})
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-3
    with pytest.raises(MismatchError, match="belongs to another model"):
        mp.verify(model, data, answer)


def test_a_dataloader_gives_what_its_tensors_give(small) -> None:
    model, (inputs, targets) = small
    dataset = torch.utils.data.TensorDataset(inputs, targets)
    loader = torch.utils.data.DataLoader(dataset, batch_size=10)
    direct = mp.profile(model, (inputs, targets), ["w3a8"])
    loaded = mp.profile(model, loader, ["w3a8"])
    assert loaded.loss == pytest.approx(direct.loss, rel=1e-6, abs=1e-9)
    assert loaded.data.fingerprint == direct.data.fingerprint


def test_weights_that_are_nan_name_the_tensor(small) -> None:
    model, data = small
    with torch.no_grad():
        model[2].weight[0, 0] = float("inf")
    with pytest.raises(ModelError, match=r"2\.weight"):
        mp.profile(model, data, ["w4a8"])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "empty"),
        (torch.zeros(0, 6), "empty"),
        (torch.full((2, 6), float("nan")), "12 values"),
        ((torch.zeros(3, 6), torch.zeros(2)), "3 inputs but 2 targets"),
        (torch.zeros(2, 7), "does not accept inputs"),
        ((torch.zeros(2, 6), torch.zeros(2, 9, 9)), "do not fit outputs"),
        ([{"x": 1}], "a batch must be"),
        ([torch.zeros(2, 6), (torch.zeros(2, 6), torch.zeros(2))], "some batches"),
    ],
)
def test_bad_data_is_refused(small, data: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        mp.profile(small[0], data, ["w4a8"])


def test_without_targets_the_loss_is_the_divergence_from_the_float_model(small) -> None:
    model, (inputs, _) = small
    result = mp.search(model, inputs, ["w2a8", "w8a8"], {"bops": "50%"})
    assert result.verification.loss_function == "kl_to_float"
    assert result.verification.float_model.loss == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(DataError, match="needs targets"):
        mp.profile(model, inputs, ["w2a8"], loss="cross_entropy")


def test_a_loss_of_the_users_own_is_scored_and_named(small) -> None:
    model, (inputs, targets) = small

    def hinge(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.multi_margin_loss(output, target)

    result = mp.search(model, (inputs, targets), ["w2a8", "w8a8"], {"bops": "50%"}, loss=hinge)
    assert result.verification.loss_function == "hinge"
    assert result.verification.metric_name is None
    with torch.no_grad():
        expected = float(hinge(model(inputs).double(), targets))
    assert result.verification.float_model.loss == pytest.approx(expected, rel=1e-6)


def test_the_bundled_example_reaches_the_accuracy_it_claims() -> None:
    model, data = digits_resnet(), digits()
    assert (len(data), len(data.held_out_inputs)) == (1078, 719)
    with torch.no_grad():
        hits = model(data.held_out_inputs).argmax(1) == data.held_out_targets
    assert float(hits.double().mean()) >= 0.98


def test_a_name_given_with_a_model_is_reported(small) -> None:
    model, data = small
    profile = mp.profile(NamedModel("my net", model), data, ["w4a8"], "gradient_deviation")
    assert profile.model.name == "my net"
