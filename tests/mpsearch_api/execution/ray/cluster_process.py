"""A Ray cluster in a process of its own; commands come in as lines, answers go out as JSON.

    python cluster_process.py PORT      PORT 0: any free one

`add CPUS` -> {"node": ID, "raylet": PID}, `kill ID` -> {};
the first line out is {"address": HOST:PORT}.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

PR_SET_PDEATHSIG = 1
STORE = 100 * 2**20
MEMORY = 6 * 2**30


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    Path("/tmp/ray").mkdir(exist_ok=True)  # ray.cluster_utils writes its address there
    from ray.cluster_utils import Cluster

    # Sockets lie in it, whose paths must be short.
    folder = tempfile.mkdtemp(prefix="mpr-", dir="/tmp")
    common = {"object_store_memory": STORE, "temp_dir": folder}
    port = int(sys.argv[1])
    head = {"num_cpus": 0, "include_dashboard": False, **common}
    cluster = Cluster(
        initialize_head=True,
        head_node_args=head | ({"gcs_server_port": port} if port else {}),
    )
    nodes = {}
    print(json.dumps({"address": cluster.address}), file=answers)
    try:
        for line in sys.stdin:
            word, argument = line.split()
            answer = {}
            if word == "add":
                node = cluster.add_node(num_cpus=int(argument), memory=MEMORY, **common)
                nodes[node.node_id] = node
                raylet = node.all_processes["raylet"][0].process.pid
                answer = {"node": node.node_id, "raylet": raylet}
            elif word == "kill":
                cluster.remove_node(nodes.pop(argument), allow_graceful=False)
            print(json.dumps(answer), file=answers)
    finally:
        for node in nodes.values():
            cluster.remove_node(node, allow_graceful=False)
        cluster.remove_node(cluster.head_node, allow_graceful=False)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
