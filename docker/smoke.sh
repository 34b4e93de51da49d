#!/bin/sh
# A real job against a running service: upload, search, result, another budget, cancel.
#   docker/smoke.sh [http://127.0.0.1:8000]      or, inside the image: mpsearch-smoke
# Needs Python with mpsearch; reads MPSEARCH_API_KEY where the service asks for a key.
set -eu
server=${1:-${MPSEARCH_SERVER:-http://127.0.0.1:8000}}
exec python - "$server" <<'PYTHON'
import sys
import time
from importlib import resources

from mpsearch.client import Client
from mpsearch.errors import MpsearchError

started = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - started:6.1f} s  {text}", flush=True)


client = Client(sys.argv[1])
deadline = time.monotonic() + 90
while True:
    try:
        client.ready()
        break
    except MpsearchError as error:
        if time.monotonic() > deadline:
            sys.exit(f"smoke: {sys.argv[1]} is not ready: {error}")
        time.sleep(0.5)
say("ready")

weights = resources.files("mpsearch.models") / "weights" / "digits-resnet.safetensors"
with resources.as_file(weights) as path:
    model = client.upload_model(path, architecture="digits-resnet")
say(f"uploaded {model.id}, sha256 {model.sha256[:12]}…")

search = {"options": ["w2a8", "w4a8", "w8a8"], "estimator": "fisher_output"}
job = client.submit(model.id, "digits", budget={"weight_memory": "0.16x"}, **search)
say(f"submitted {job.id}")
job = client.wait(job.id, timeout=300)
assert job.status == "succeeded", job.failure
result = client.result(job.id)
assert result.verification is not None
use = result.budgets["weight_memory"]
assert use.usage <= use.limit, use
say(
    f"{result.status}, {use.usage:.0f} of {use.limit:.0f} {use.unit}, "
    f"accuracy {result.verification.allocation.metric:.4f}"
)

cheaper = client.solve(job.id, {"weight_memory": "0.12x"})
assert cheaper.budgets["weight_memory"].usage <= cheaper.budgets["weight_memory"].limit
say(f"solved again: {cheaper.status}, {cheaper.budgets['weight_memory'].usage:.0f} B")

slow = client.submit("digits-resnet", "digits", budget={"weight_memory": "0.2x"})
assert client.cancel(slow.id).status == "cancelled"
say("cancelled a second job")
print("smoke: passed")
PYTHON
