"""The HTTP server alone, on the port given; settings by environment."""

from __future__ import annotations

import os
import sys

import uvicorn

from mpsearch_api.execution.processes import die_with_parent
from mpsearch_api.http import create_app
from mpsearch_api.http.catalogue import Catalogue, Description
from mpsearch_api.settings import Settings
from mpsearch_api.store import appending, bells

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
    # Notifications that are lost on the way, or all there is: the database is not asked meanwhile.
    bells.CHANNEL = os.environ.get("CHAOS_CHANNEL", bells.CHANNEL)
    bells.PostgresBell.interval = float(
        os.environ.get("CHAOS_BELL_SECONDS", bells.PostgresBell.interval)
    )
    appending.PIECE_BYTES = int(os.environ.get("CHAOS_PIECE_BYTES", appending.PIECE_BYTES))
    app = create_app(Settings(), catalogue=Catalogue(KNOWN))
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
