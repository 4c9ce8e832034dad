"""What a request meets before Gradio: room for its file, the wait before it; the folder that goes with the process."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import httpx
import pytest

from space import gate
from tests.space.conftest import ROOT, Server


def fill(folder, count, size, age):
    for number in range(count):
        file = folder / f"{number:03}" / "picture.png"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"x" * size)
        os.utime(file, (time.time() - age - count + number,) * 2)


def stored(folder):
    return sorted(file.parent.name for file in folder.rglob("*.png"))


def test_the_oldest_uploads_make_room_for_the_next(tmp_path):
    fill(tmp_path, 150, 2**20, age=300)  # 150 MB
    gate.make_room(tmp_path, time.time())
    assert stored(tmp_path) == [f"{number:03}" for number in range(96, 150)]  # 54 MB and room for one of 10


def test_many_new_uploads_are_refused_until_a_minute_has_passed(tmp_path):
    fill(tmp_path, 60, 2**20, age=-60)
    with pytest.raises(gate.Refused, match="too many pictures.*60 seconds"):
        gate.make_room(tmp_path, time.time())
    assert len(stored(tmp_path)) == 60
    gate.make_room(tmp_path, time.time() + 130)
    assert len(stored(tmp_path)) == 54


def busy(waiting, active, seconds):
    """A queue as Gradio's: so many requests wait, so many are at work; seconds that each took, None: not known."""
    timed = {} if seconds is None else {"ask": SimpleNamespace(avg_time=seconds)}
    event = SimpleNamespace(fn="ask")
    queues = {"model": SimpleNamespace(queue=[event] * waiting), "scene": SimpleNamespace(queue=[])}
    jobs = [[event]] * active + [None]
    return SimpleNamespace(
        _queue=SimpleNamespace(event_queue_per_concurrency_id=queues, active_jobs=jobs, process_time_per_fn=timed)
    )


def reply(demo, method="POST", path="/gradio_api/queue/join", inner=None, folder="/nowhere"):
    """(status, headers, body) of a request through the gate; 200 from behind it."""
    sent = []

    async def app(scope, receive, send):
        if inner is not None:
            raise inner
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": []}
    asyncio.run(gate.Gate(app, demo, folder)(scope, receive, send))
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, json.loads(sent[1]["body"])


def test_what_cannot_be_answered_in_time_is_refused_with_the_seconds_to_wait():
    assert reply(busy(waiting=3, active=2, seconds=1.0))[0] == 200  # ten seconds while others are asked
    status, headers, body = reply(busy(waiting=4, active=2, seconds=1.0))
    assert status == 503 and headers["retry-after"] == "12" and "12 seconds" in body["detail"]
    assert reply(busy(waiting=40, active=2, seconds=0.1))[0] == 200  # a quick model takes more
    assert reply(busy(waiting=4, active=2, seconds=None))[0] == 503  # before any was timed
    assert reply(busy(waiting=90, active=2, seconds=2.0), method="GET", path="/")[0] == 200


def test_requests_that_come_at_once_count_each_other():
    """Between the gate and the queue lies the reading of the request."""
    demo, statuses = busy(waiting=0, active=0, seconds=1.0), []

    async def app(scope, receive, send):
        await asyncio.sleep(0.01)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        statuses.append(message.get("status"))

    async def all_at_once():
        one = gate.Gate(app, demo, "/nowhere")
        scope = {"type": "http", "method": "POST", "path": "/gradio_api/queue/join", "headers": []}
        await asyncio.gather(*[one(scope, None, send) for _ in range(30)])
        assert one.joining == 0

    asyncio.run(all_at_once())
    assert statuses.count(200) == 6 and statuses.count(503) == 24


def test_an_error_behind_the_gate_is_one_line(caplog):
    status, _, body = reply(busy(0, 0, 1.0), inner=KeyError("no function of that name"))
    assert status == 400 and body == {"detail": "the request cannot be understood"}
    assert [record.getMessage() for record in caplog.records] == ["/gradio_api/queue/join: 'no function of that name'"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_folder_of_a_start_goes_with_it(tmp_path, monkeypatch, how):
    """Also when it was killed: the next start takes it away, and leaves those of others that run."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    (tmp_path / "tmp").mkdir()
    running = tmp_path / "tmp" / f"vift-space-{os.getpid()}-x"
    running.mkdir()
    server = Server(tmp_path)
    assert httpx.post(f"{server.url}/gradio_api/upload", files={"files": b"x"}).status_code == 200
    assert len(list((tmp_path / "tmp").glob("vift-space-*"))) == 2
    server.process.send_signal(how)
    server.process.wait(timeout=60)
    if how == signal.SIGKILL:
        code = "from space.app import own_folder\nwith own_folder(): pass"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert list((tmp_path / "tmp").glob("vift-space-*")) == [running]
