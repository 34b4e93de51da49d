"""A dispatcher whose jobs are those of `jobs_for_tests`; settings by environment."""

from __future__ import annotations

import os
from pathlib import Path

from mpsearch_api.execution.dispatcher import run_dispatcher
from mpsearch_api.execution.local import Program
from mpsearch_api.execution.processes import die_with_parent
from mpsearch_api.logs import configure_logs
from mpsearch_api.settings import Settings

JOBS = Path(__file__).parents[1] / "execution"


def main() -> None:
    die_with_parent(int(os.environ["CHAOS_PARENT"]))
    settings = Settings()
    configure_logs(settings)
    heavy = bool(os.environ.get("CHAOS_TORCH"))
    program = Program(
        target="jobs_for_tests:run",
        prepare=None,
        preload=("torch", "sklearn.datasets") if heavy else (),
        when_idle=(),
        paths=(str(JOBS),),
    )
    run_dispatcher(settings, program)


if __name__ == "__main__":
    main()
