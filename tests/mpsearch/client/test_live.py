"""The client against `mpsearch serve`, over a socket, with the server killed on the way."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mpsearch import models
from mpsearch.client import (
    AsyncClient,
    Client,
    ConflictError,
    InfeasibleRequestError,
    JobCancelledError,
    JobRefusedError,
    NotFoundError,
    RefusedError,
    WaitTimeoutError,
)
from mpsearch.errors import InfeasibleError, InputError

WEIGHTS = Path(models.__file__).parent / "weights" / "digits-resnet.safetensors"
QUICK = {"options": ["w2a8", "w4a8", "w8a8"], "estimator": "fisher_output"}
BUDGET = {"weight_memory": "0.16x"}


@pytest.fixture(scope="module")
def client(served):
    with Client(served.address) as client:
        yield client


@pytest.fixture(scope="module")
def done(client):
    """A job that succeeded."""
    return client.wait(client.submit("digits-resnet", "digits", budget=BUDGET, **QUICK))


def test_a_job_runs_to_its_allocation(client, done) -> None:
    assert done.status == "succeeded", done.failure
    answer = client.result(done)
    use = answer.budgets["weight_memory"]
    assert use.usage <= use.limit
    assert answer.status == "optimal"
    assert answer.verification.allocation.metric > 0.9


def test_documents_of_a_job_belong_together(client, done) -> None:
    answer, profile, costs = client.result(done), client.profile(done), client.costs(done.id)
    assert list(answer.groups) == profile.groups == costs.groups
    columns = [profile.options.index(option) for option in answer.groups.values()]
    used = costs.usage("weight_memory", np.array(columns))
    assert used == pytest.approx(answer.budgets["weight_memory"].usage, rel=1e-12)
    curve = client.frontier(done)
    assert curve.resource == "weight_memory"
    assert client.frontier(done, "bops").resource == "bops"


def test_solving_again_answers_without_the_model(client, done) -> None:
    tight = client.solve(done, {"weight_memory": "0.12x"})
    loose = client.solve(done.id, {"weight_memory": "0.2x"}, solver={"gap": 0.0})
    assert tight.predicted_loss >= loose.predicted_loss
    assert tight.verification is None


def test_a_budget_nothing_keeps_names_the_least(client, done) -> None:
    with pytest.raises(InfeasibleRequestError) as caught:
        client.solve(done, {"weight_memory": "1 kB"})
    assert isinstance(caught.value, InfeasibleError)
    assert caught.value.exit_code == 3
    assert caught.value.minimum["weight_memory"] > 1000


def test_every_file_of_a_job_can_be_fetched_and_is_whole(client, done, tmp_path) -> None:
    written = client.download_all(done, tmp_path / "new" / "folder")
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in written}
    assert found == {artifact.name: artifact.sha256 for artifact in done.artifacts}
    assert client.download(done, "layers.csv", tmp_path) == tmp_path / "layers.csv"
    assert client.report(done, tmp_path / "a.html").read_bytes().lstrip().startswith(b"<!")
    assert client.report(done, tmp_path / "a.png", format="png").read_bytes()[1:4] == b"PNG"
    with pytest.raises(InputError, match=r"no artifact 'nothing.txt' \(allocation.json"):
        client.download(done, "nothing.txt", tmp_path)
    assert not list(tmp_path.rglob("*.partial"))


def test_jobs_are_listed_newest_first_and_by_status(client, done) -> None:
    ids = [job.id for job in client.jobs()]
    assert done.id in ids
    assert ids == sorted(ids, reverse=True)
    assert [job.id for job in client.jobs(limit=1)] == ids[:1]
    assert all(job.status == "succeeded" for job in client.jobs(status="succeeded"))
    assert client.job(done.id) == done


def test_events_can_be_read_again_from_anywhere(client, done) -> None:
    events = list(client.events(done))
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    assert list(client.events(done, after=len(events) - 2)) == events[-2:]
    assert not list(client.events(done, after=len(events)))


def test_uploaded_weights_and_arrays_are_searched_and_not_sent_twice(client) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    inputs = (digits.images[:200, None] / 16).astype(np.float32)
    arguments = {"budget": BUDGET, **QUICK}
    model = f"digits-resnet@{WEIGHTS}"
    first = client.submit(model, (inputs, digits.target[:200]), **arguments)
    again = client.submit(model, {"inputs": inputs, "targets": digits.target[:200]}, **arguments)
    assert first.request.model.startswith("mdl_")
    assert first.request.data.startswith("dat_")
    assert (again.request.model, again.request.data) == (first.request.model, first.request.data)
    client.cancel(again)
    answer = client.result(client.wait(first))
    assert answer.verification is not None


def test_the_same_key_gives_the_same_job(client) -> None:
    def submit(**more):
        return client.submit(
            "digits-resnet", "digits", budget=BUDGET, idempotency_key="release-7", **QUICK, **more
        )

    first = submit()
    assert submit().id == first.id
    with pytest.raises(ConflictError, match="release-7"):
        submit(seed=1)
    client.cancel(first)


def test_a_cancelled_job_has_no_result_and_can_be_deleted(client) -> None:
    job = client.submit("digits-resnet", "digits", budget=BUDGET)
    assert client.cancel(job).status == "cancelled"
    assert client.wait(job).status == "cancelled"
    with pytest.raises(JobCancelledError):
        client.result(job)
    client.delete(job)
    with pytest.raises(NotFoundError):
        client.job(job)


def test_a_job_that_has_not_ended_has_no_result_yet(client) -> None:
    job = client.submit("digits-resnet", "digits", budget=BUDGET)
    with pytest.raises(ConflictError, match="its result comes"):
        client.result(job)
    with pytest.raises(WaitTimeoutError):
        client.wait(job, timeout=0.1)
    with pytest.raises(ConflictError):
        client.delete(job)
    client.cancel(job)


def test_what_the_job_finds_wrong_is_an_error_of_the_input(client) -> None:
    inputs = np.zeros((4, 3, 8, 8), np.float32)  # three channels, the model takes one
    with pytest.raises(JobRefusedError) as caught:
        client.search("digits-resnet", inputs, budget=BUDGET, **QUICK)
    assert caught.value.exit_code == 2
    assert caught.value.failure.kind == "bad_input"


def test_what_cannot_be_meant_is_refused_with_the_place(client) -> None:
    with pytest.raises(RefusedError, match="estimator") as caught:
        client.submit("digits-resnet", "digits", budget=BUDGET, estimator="fischer_output")
    assert caught.value.exit_code == 2
    assert caught.value.status == 422
    with pytest.raises(InputError, match="budget"):
        client.submit("digits-resnet", "digits")


def test_problem_files_are_solved_without_a_model(client, tmp_path) -> None:
    options = [{"name": "a", "loss": 1.0, "costs": {"size": 1}},
               {"name": "b", "loss": 0.0, "costs": {"size": 2}}]  # fmt: skip
    groups = [{"name": name, "options": options} for name in "xyz"]
    problem = {"groups": groups, "limits": {"size": 5}}
    found = client.solve_problem(problem, gap=0.0)
    assert found["status"] == "optimal"
    assert sorted(found["choice"].values()) == ["a", "b", "b"]
    path = tmp_path / "problem.json"
    path.write_text(json.dumps({**problem, "limits": {"size": 2}}))
    assert client.solve_problem(path)["status"] == "infeasible"


def test_cost_tables_are_uploaded_listed_and_deleted(client, tmp_path) -> None:
    from mpsearch.hardware import device

    table = Path(device.__file__).parent / "devices" / "nvidia-t4.json"
    stored = client.upload_hardware(table)
    assert [one.id for one in client.stored("hardware")] == [stored.id]
    names = [entry.name for entry in client.devices()]
    assert {"nvidia-t4", stored.id} <= set(names)
    client.delete(stored)
    assert not list(client.stored("hardware"))


def test_lists_of_what_the_service_knows(client) -> None:
    assert "mxfp4" in {entry["name"] for entry in client.formats()}
    assert "hessian_trace" in {entry["name"] for entry in client.estimators()}
    assert "ilp" in {entry["name"] for entry in client.solvers()}
    assert "digits-resnet" in {entry["name"] for entry in client.architectures()}


def test_the_asynchronous_client_runs_many_jobs_at_once(served, done) -> None:
    async def main():
        async with AsyncClient(served.address) as client:
            await client.ready()
            jobs = [
                await client.submit("digits-resnet", "digits", budget={"weight_memory": b}, **QUICK)
                for b in ("0.13x", "0.15x", "0.2x")
            ]
            ended = await asyncio.gather(*(client.wait(job) for job in jobs))
            assert [job.status for job in ended] == ["succeeded"] * 3
            answers = await asyncio.gather(*(client.result(job) for job in jobs))
            listed = [job.id async for job in client.jobs(limit=3)]
            assert listed == [job.id for job in reversed(jobs)]
            return [answer.predicted_loss for answer in answers]

    losses = asyncio.run(main())
    assert losses == sorted(losses, reverse=True)


def test_both_clients_say_the_same(served, client, done, tmp_path) -> None:
    options = [{"name": "a", "loss": 1.0, "costs": {"s": 1}}]
    problem = {"groups": [{"name": "x", "options": options}], "limits": {"s": 1}}

    async def main():
        async with AsyncClient(served.address) as other:
            for name in ("job", "result", "profile", "costs", "frontier"):
                blocking = getattr(client, name)(done).model_dump_json()
                assert (await getattr(other, name)(done)).model_dump_json() == blocking
            for name in ("formats", "estimators", "solvers", "architectures"):
                assert await getattr(other, name)() == getattr(client, name)()
            assert [entry async for entry in other.devices()] == list(client.devices())
            assert [event async for event in other.events(done)] == list(client.events(done))
            budget = {"weight_memory": "0.2x"}
            assert (await other.solve(done, budget)).layers == client.solve(done, budget).layers
            assert (await other.solve_problem(problem))["choice"] == {"x": "a"}
            table = await other.download(done, "layers.csv", tmp_path / "one.csv")
            log = await other.report(done, tmp_path / "two.csv", format="csv")
            assert table.read_bytes() == log.read_bytes()
            assert len(await other.download_all(done, tmp_path / "all")) == len(done.artifacts)

    asyncio.run(main())


def test_the_asynchronous_client_uploads_searches_and_deletes(served, tmp_path) -> None:
    async def main():
        async with AsyncClient(served.address) as client:
            model = await client.upload_model(
                WEIGHTS.read_bytes(), name="mine.safetensors", architecture="digits-resnet"
            )
            data = await client.upload_data(np.zeros((4, 3, 8, 8), np.float32), name="bad.npz")
            assert [found.id async for found in client.stored("model", limit=1)] == [model.id]
            with pytest.raises(JobRefusedError):
                await client.search(model, data, budget=BUDGET, progress=True, **QUICK)
            job = await client.submit(model, "digits", budget=BUDGET)
            assert (await client.cancel(job)).status == "cancelled"
            for each in (job, data, model):
                await client.delete(each)
            with pytest.raises(NotFoundError):
                await client.delete(model)

    asyncio.run(main())


@pytest.mark.slow
def test_waiting_outlasts_a_server_that_is_killed_and_started_again(served, client) -> None:
    job = client.submit("digits-resnet", "digits", budget=BUDGET, options=["w2a8", "w4a8", "w8a8"])
    seen: list[int] = []
    started = threading.Event()

    def on_event(event) -> None:
        seen.append(event.id)
        if event.status == "running":
            started.set()

    def kill_and_start_again() -> None:
        started.wait(120)
        served.kill(signal.SIGKILL)
        time.sleep(1.0)
        served.start()

    killer = threading.Thread(target=kill_and_start_again)
    killer.start()
    try:
        ended = client.wait(job, timeout=240, on_event=on_event)
    finally:
        killer.join()
    served.wait_until_ready()
    assert ended.status == "succeeded", ended.failure
    assert ended.attempt == 2
    assert seen == list(range(1, len(seen) + 1))
    assert client.result(ended).verification is not None


@pytest.mark.slow
def test_an_upload_is_completed_by_a_server_started_anew(served, client, tmp_path) -> None:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(5, 1000, 1000)).astype(np.float32)
    path = tmp_path / "data.npz"
    np.savez(path, inputs=inputs)
    offsets: list[int] = []

    def on_upload(sent: int, total: int) -> None:
        offsets.append(sent)
        if 0 < sent < total and served.process.poll() is None and len(offsets) == 2:
            served.kill(signal.SIGKILL)
            served.start()

    stored = client.upload_data(path, on_upload=on_upload)
    assert stored.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert stored.size == path.stat().st_size == offsets[-1]
    assert offsets == sorted(offsets)
    assert offsets.count(0) == 1  # it went on, and did not begin anew
