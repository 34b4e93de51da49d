"""Sensitivity estimators: how much loss every layer costs at every option.

The catalog is free of torch, so that servers and listings can read it; the protocol and the
estimators need torch and are imported on use.
"""

from mpsearch.sensitivity.catalog import EstimatorInfo, build, info, known, register

__all__ = ["EstimatorInfo", "build", "info", "known", "register"]
