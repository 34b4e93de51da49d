"""The form of KubeRay's RayCluster, version v1, restated from its types.

Source: ray-project/kuberay, `ray-operator/apis/ray/v1/raycluster_types.go` (Apache-2.0), as of the
versions that know `authOptions` (1.5.1 and newer). Unknown members are refused, as the API server
does for `kubectl apply`. Pod templates are left to Kubernetes' own schema.
"""

from __future__ import annotations

from typing import Any

_TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_POD_TEMPLATE: dict[str, Any] = {"type": "object", "required": ["spec"]}
_GROUP: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["groupName", "maxReplicas", "minReplicas", "rayStartParams", "template"],
    "properties": {
        "groupName": {"type": "string", "minLength": 1},
        "replicas": _COUNT,
        "minReplicas": _COUNT,
        "maxReplicas": _COUNT,
        "idleTimeoutSeconds": _COUNT,
        "numOfHosts": _COUNT,
        "suspend": {"type": "boolean"},
        "rayStartParams": _TEXTS,
        "template": _POD_TEMPLATE,
        "scaleStrategy": {"type": "object"},
    },
}
RAY_CLUSTER: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayCluster"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["headGroupSpec"],
            "properties": {
                "authOptions": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "mode": {"enum": ["disabled", "token"]},
                        "secretName": {"type": "string"},
                        "enableK8sTokenAuth": {"type": "boolean"},
                    },
                },
                "autoscalerOptions": {"type": "object"},
                "enableInTreeAutoscaling": {"type": "boolean"},
                "gcsFaultToleranceOptions": {"type": "object"},
                "headGroupSpec": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["rayStartParams", "template"],
                    "properties": {
                        "enableIngress": {"type": "boolean"},
                        "headService": {"type": "object"},
                        "rayStartParams": _TEXTS,
                        "serviceType": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
                        "template": _POD_TEMPLATE,
                    },
                },
                "headServiceAnnotations": _TEXTS,
                "managedBy": {"type": "string"},
                "rayVersion": {"type": "string"},
                "suspend": {"type": "boolean"},
                "upgradeStrategy": {"type": "object"},
                "workerGroupSpecs": {"type": "array", "items": _GROUP},
            },
        },
    },
}
