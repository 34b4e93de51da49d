"""torchao: `FqnToConfig` in the JSON of `torchao.core.config`, written without torchao.

The fields are those of `config_to_dict` in torchao 0.18; a test has torchao read them.
"""

from __future__ import annotations

import json
from typing import Any

from mpsearch.export.protocol import Request
from mpsearch.export.targets.naming import integer_name, option_name, with_sharing
from mpsearch.formats import Format, Integer, Option

__all__ = ["parse", "render"]

Config = dict[str, Any]


def render(request: Request) -> str:
    """Write one config per layer; layers that stay float have None."""
    configs = {layer: _config(option) for layer, option in request.layers.items()}
    return json.dumps(_object("FqnToConfig", {"fqn_to_config": configs}), indent=1) + "\n"


def parse(text: str) -> dict[str, str]:
    """Read layer -> option from the types and fields of the configs."""
    document = json.loads(text)
    if document["_type"] != "FqnToConfig":
        raise ValueError(f"a {document['_type']}, not a FqnToConfig")
    configs = document["_data"]["fqn_to_config"]
    return {layer: _option(config) for layer, config in configs.items()}


def _object(kind: str, data: object, version: int | None = 1) -> Config:
    return {"_type": kind, **({"_version": version} if version else {}), "_data": data}


def _config(option: Option) -> Config | None:
    if option.is_float:
        return None
    weight, activation = option.weight, option.activation
    if not isinstance(weight, Integer):
        data = {
            "weight_dtype": _dtype("float8_e4m3fn"),
            "set_inductor_config": True,
            "granularity": _rows(weight),
        }
        return _object("Float8WeightOnlyConfig", data, 2)
    if activation.is_float and weight.width == 8 and not weight.asymmetric:
        data = {"group_size": None, "granularity": _rows(weight), "set_inductor_config": True}
        return _object("Int8WeightOnlyConfig", data, 2)
    if activation.is_float:
        return _intx_weights(weight)
    assert isinstance(activation, Integer)
    if weight.width == 8:
        data = {
            "act_mapping_type": _mapping(activation),
            "weight_only_decode": False,
            "granularity": [_object("PerRow", {"dim": -1}), _rows(weight)],
            "set_inductor_config": True,
            "reduce_range": False,
        }
        return _object("Int8DynamicActivationInt8WeightConfig", data, 2)
    return _intx_both(weight, activation)


def _intx_weights(weight: Integer) -> Config:
    data = {
        "weight_dtype": _dtype(f"int{weight.width}"),
        "granularity": _axis(weight),
        "mapping_type": _mapping(weight),
        "scale_dtype": None,
        **_INTX,
    }
    return _object("IntxWeightOnlyConfig", data, 2)


def _intx_both(weight: Integer, activation: Integer) -> Config:
    data = {
        "weight_dtype": _dtype(f"int{weight.width}"),
        "weight_granularity": _axis(weight),
        "weight_mapping_type": _mapping(weight),
        "weight_scale_dtype": None,
        "act_mapping_type": _mapping(activation),
        **_INTX,
    }
    return _object("Int8DynamicActivationIntxWeightConfig", data, 2)


def _dtype(name: str) -> Config:
    return _object("torch.dtype", name, None)


_INTX = {
    "intx_packing_format": _object("IntxPackingFormat", "UNPACKED_TO_INT8", None),
    "intx_choose_qparams_algorithm": _object("IntxChooseQParamsAlgorithm", "AFFINE", None),
}


def _mapping(spec: Integer) -> Config:
    return _object("MappingType", "ASYMMETRIC" if spec.asymmetric else "SYMMETRIC", None)


def _rows(spec: Format) -> Config:
    if spec.block:
        return _object("PerGroup", {"group_size": spec.block})
    return _object("PerTensor", {}) if spec.per_tensor else _object("PerRow", {"dim": -1})


def _axis(spec: Format) -> Config:
    if spec.block:
        return _object("PerGroup", {"group_size": spec.block})
    return _object("PerAxis", {"axis": 0})


def _option(config: Config | None) -> str:
    if config is None:
        return "float"
    kind, data = config["_type"], config["_data"]
    if kind == "Int8WeightOnlyConfig":
        return option_name(_named("int8", data["granularity"]))
    if kind == "Float8WeightOnlyConfig":
        return option_name(_named("fp8_e4m3", data["granularity"]))
    if kind == "Int8DynamicActivationInt8WeightConfig":
        return option_name(
            _named("int8", data["granularity"][1]), _integer("int8", data["act_mapping_type"])
        )
    width = data["weight_dtype"]["_data"]
    if kind == "IntxWeightOnlyConfig":
        return option_name(_named(_integer(width, data["mapping_type"]), data["granularity"]))
    if kind == "Int8DynamicActivationIntxWeightConfig":
        weight = _integer(width, data["weight_mapping_type"])
        return option_name(
            _named(weight, data["weight_granularity"]), _integer("int8", data["act_mapping_type"])
        )
    raise ValueError(f"no option of mpsearch is a {kind}")


def _integer(width: str, mapping: Config) -> str:
    bits = int(width.removeprefix("int"))
    return integer_name(bits, asymmetric=mapping["_data"] == "ASYMMETRIC")


def _named(element: str, granularity: Config) -> str:
    group = granularity["_data"].get("group_size")
    return with_sharing(element, group, tensor=granularity["_type"] == "PerTensor")
