"""The HTTP server alone, on the port given; settings by environment."""

from __future__ import annotations

import os
import sys

import uvicorn

from mpsearch_api.execution.processes import die_with_parent
from mpsearch_api.http import create_app
from mpsearch_api.http.catalogue import Catalogue, Description
from mpsearch_api.settings import Settings

# What a process with torch would tell, which takes it long after each restart.
KNOWN = Description(
    architectures=("digits-resnet",),
    torchvision=(),
    data=("digits",),
    losses=("cross_entropy",),
    settings={"measured_loss": {}},
)

if __name__ == "__main__":
    die_with_parent(int(os.environ["CHAOS_PARENT"]))
    app = create_app(Settings(), catalogue=Catalogue(KNOWN))
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
