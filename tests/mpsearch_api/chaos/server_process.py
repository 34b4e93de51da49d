"""The HTTP server alone, on the port given; settings by environment."""

from __future__ import annotations

import os
import sys

import uvicorn

from mpsearch_api.execution.processes import die_with_parent
from mpsearch_api.http import create_app
from mpsearch_api.settings import Settings

if __name__ == "__main__":
    die_with_parent(int(os.environ["CHAOS_PARENT"]))
    uvicorn.run(
        create_app(Settings()), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning"
    )
