"""The `mpsearch` command."""

import os

# Small layers on a busy machine otherwise spend their time spinning at barriers: a search that
# takes 3 s on two idle cores took minutes on two shared ones. Read by OpenMP when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from mpsearch.cli.app import main

__all__ = ["main"]
