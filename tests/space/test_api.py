"""The API of a running Space: endpoints, streams, visitors who do not mix or who leave, and everything it refuses."""

import asyncio
import contextlib
import json
import threading
import time

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from tests.space import load, pictures
from vift_eval.known import UNKNOWN

JSON = {"content-type": "application/json"}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*:FutureWarning")
ENDPOINTS = {"/ask", "/sweep", "/movement", "/chat", "/new_scene"}


@pytest.fixture(scope="module")
def client(server):
    return Client(server.url, verbose=False)


@pytest.fixture(scope="module")
def asked(client):
    picture, question, answer, words = client.predict(seed=3, api_name="/new_scene")
    return {"picture": handle_file(picture), "question": question}


@pytest.fixture(scope="module")
def usual(client, asked):
    return client.predict(**asked, api_name="/ask")


@pytest.fixture(autouse=True)
def healthy_after(client, asked, usual):
    """Whatever a test does, the next visitor is answered as ever."""
    yield
    assert client.predict(**asked, api_name="/ask") == usual


def refused(client, word, api_name="/ask", **arguments):
    with pytest.raises(AppError) as caught:
        client.predict(**arguments, api_name=api_name)
    message = str(caught.value)
    assert word in message and "Traceback" not in message and "/tmp" not in message, message


# --- what there is ------------------------------------------------------------------------------


def test_endpoints_are_named_typed_and_described(client):
    api = client.view_api(return_format="dict")["named_endpoints"]
    assert set(api) == ENDPOINTS
    for name, endpoint in api.items():
        assert len(endpoint["description"]) > 30, name
        assert all(parameter["python_type"]["type"] for parameter in endpoint["parameters"])
    names = [parameter["parameter_name"] for parameter in api["/ask"]["parameters"]]
    assert names[:6] == ["picture", "question", "alpha", "beta", "first_layer", "stop_layer"]


def test_the_same_are_tools_for_language_models(server, asked):
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def ask():
        async with (
            streamable_http_client(f"{server.url}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            return tools, await session.call_tool("new_scene", {"seed": 3})

    tools, result = asyncio.run(ask())
    assert {name.removeprefix("/") for name in ENDPOINTS} == set(tools)
    properties = tools["ask"].inputSchema["properties"]
    assert "weight of the run without it" in properties["beta"]["description"]
    assert not result.isError and asked["question"] in str(result.content)


def test_a_seed_is_a_scene(client):
    assert client.predict(seed=5, api_name="/new_scene")[1:] == client.predict(seed=5, api_name="/new_scene")[1:]
    scenes = {client.predict(api_name="/new_scene")[3] for _ in range(4)}
    assert len(scenes) > 1


def test_answers_stream_and_only_grow(client, asked):
    steps = list(client.submit(**asked | {"question": "describe the picture in detail ."}, api_name="/ask"))
    assert len(steps) >= 3
    for before, after in zip(steps, steps[1:]):
        assert after[0].startswith(before[0]) and after[1].startswith(before[1])


def test_sweep_and_movement_give_numbers(client, asked):
    asked = asked | {"alpha": 1.0}  # so that beta 0 is the unfused model, whatever the checkpoint's own setting
    html, points = client.predict(**asked, api_name="/sweep")
    assert [p["beta"] for p in points] == sorted(p["beta"] for p in points) and len(points) == 17
    plain, fused, _ = client.predict(**asked, beta=points[4]["beta"], api_name="/ask")
    assert (points[0]["answer"], points[4]["answer"]) == (plain, fused)
    html, moved = client.predict(**asked, api_name="/movement")
    assert len(moved["moved"]) == len(moved["layers"]) and "vift-map" in html


def test_chat_goes_on(client, asked):
    history = []
    for turn in (1, 2):
        _, history = client.predict(
            message=asked["question"], history=history, picture=asked["picture"], fused=True, api_name="/chat"
        )
        assert [entry["role"] for entry in history] == ["user", "assistant"] * turn
    _, plain = client.predict(message="hello", history=[], picture=None, fused=False, api_name="/chat")
    assert len(plain) == 2


def test_a_remark_names_unknown_words(client, asked):
    assert "zebra" in client.predict(**asked | {"question": "which zebra is red ?"}, api_name="/ask")[2]
    assert client.predict(**asked, api_name="/ask")[2] == ""


def test_a_picture_of_an_unknown_kind_is_said_to_be_one(client, asked, tmp_path):
    """Beside the answer and in the chat, whose prompt does not hold it: a second turn is answered as ever."""
    path = str(pictures.odd(tmp_path))
    *_, remark = client.predict(**asked | {"picture": handle_file(path)}, api_name="/ask")
    assert UNKNOWN in remark
    turn = {"message": asked["question"], "picture": handle_file(path), "fused": True, "api_name": "/chat"}
    _, history = client.predict(history=[], **turn)
    bare = history[:1] + [{"role": "assistant", "content": history[1]["content"][0]["text"].partition("\n")[2]}]
    assert history[1]["content"][0]["text"].startswith(UNKNOWN)
    again, same = (client.predict(history=turns, **turn)[1][-1]["content"][0]["text"] for turns in (history, bare))
    assert again == same


# --- many visitors ------------------------------------------------------------------------------


def test_visitors_with_other_betas_do_not_mix(server, asked):
    """Two at a time run in one process: each gets what it gets alone."""
    betas, found = [0.0, 0.3, 0.6, 2.0], {}
    first = Client(server.url, verbose=False)
    alone = {beta: first.predict(**asked, beta=beta, api_name="/ask")[:2] for beta in betas}

    def visitor(beta):
        client = Client(server.url, verbose=False)
        found[beta] = {client.predict(**asked, beta=beta, api_name="/ask")[:2] for _ in range(4)}

    threads = [threading.Thread(target=visitor, args=(beta,)) for beta in betas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {beta: {answers} for beta, answers in alone.items()}


def test_twenty_clients_lose_nothing(server):
    """Three seconds of what `load.py` does for sixty: each gets its answer, or is told at once to come again."""
    result = load.run(server.url, clients=20, seconds=3, questions=2)
    assert result["answers"] and result["answers"] + result["refused"] >= 20 and result["different_answers_alone"] > 2
    assert (result["lost"], result["different"], result["errors"]) == (0, 0, [])


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("make", pictures.REFUSED, ids=lambda make: make.__name__)
def test_bad_pictures_are_refused(client, asked, tmp_path, make):
    refused(client, pictures.REFUSED[make], **asked | {"picture": handle_file(str(make(tmp_path)))})


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"picture": None}, "no picture"),
        ({"question": ""}, "empty"),
        ({"question": "x" * 100_000}, "100000 characters; at most 1000"),
        ({"question": "?" * 600}, "tokens; this model reads at most"),
        ({"question": "<b>how many</b> digits ?"}, "markup"),
        ({"question": "what <image> is this ?"}, "<image>"),
        ({"alpha": 9}, "greater than maximum value 2"),
        ({"alpha": "much"}, "much"),
        ({"beta": -3}, "less than minimum value 0"),
        ({"first_layer": 6, "stop_layer": 2}, "6:2"),
        ({"first_layer": 4, "stop_layer": 4}, "4:4"),
        ({"stop_layer": 99}, "99"),
        ({"rule": "sum"}, "sum"),
        ({"max_new_tokens": 100_000}, "100000"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_arguments_are_refused(client, asked, arguments, word):
    # 600 signs fit into a question, not into the model beside a long answer
    refused(client, word, **asked | arguments)


def test_a_turn_may_be_a_text_as_the_docstring_says(client, asked):
    arguments = {"message": asked["question"], "picture": asked["picture"], "fused": True, "api_name": "/chat"}
    turns = [("user", "describe the picture ."), ("assistant", "the picture shows 2 digits .")]
    as_text = [{"role": role, "content": text} for role, text in turns]
    as_parts = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    assert client.predict(history=as_text, **arguments) == client.predict(history=as_parts, **arguments)


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("ask", [], "needed: 9, got: 0"),
        ("ask", [5, "what is it ?", 1.0, 0.5, 0, 4, "cascade", "all", 16], "picture: "),
        ("ask", [None, ["what"], 1.0, 0.5, 0, 4, "cascade", "all", 16], "question: must be a text, not ['what']"),
        ("ask", [None, "what is it ?", 1.0, {}, 0, 4, "cascade", "all", 16], "beta: cannot be {}"),
        ("ask", [None, "what is it ?", 1.0, 0.5, 0, 4, None, [], 16], "span: Value: [] "),
        (
            "chat",
            ["hello", 5, None, True, 1.0, 0.5, 0, 4, "cascade", "all", 16],
            "history: Input should be a valid list",
        ),
        ("chat", ["hello", [{"role": "user"}], None, True, 1, 0.5, 0, 4, "cascade", "all", 16], "history: 0.content"),
        ("new_scene", ["x"], "seed: cannot be 'x'"),
    ],
)
def test_what_cannot_be_read_names_the_argument_in_one_line(server, name, data, word):
    reply = call(server, data, name)
    message = json.loads(reply.split("data: ")[-1].strip())["error"]
    assert word in message and "\n" not in message and "pydantic" not in message, message


def test_requests_for_what_is_not_there_are_answered(server):
    assert httpx.post(f"{server.url}/gradio_api/call/nope", json={"data": []}).status_code == 400
    body = {"data": [], "fn_index": 999, "session_hash": "nobody"}
    assert httpx.post(f"{server.url}/gradio_api/queue/join", json=body).status_code == 400


def test_conversations_hold_text_only(client, asked):
    evil = [{"role": "user", "content": [{"type": "file", "file": asked["picture"], "alt_text": None}]}]
    refused(client, "text only", "/chat", message="hello", history=evil, picture=None, fused=True)


def call(server, data, api_name="ask"):
    """A call without gradio's client: returns the event lines that come back."""
    answer = httpx.post(
        f"{server.url}/gradio_api/call/{api_name}", content=json.dumps({"data": data}), headers=JSON, timeout=60
    )
    if answer.status_code != 200:
        return answer
    return httpx.get(f"{server.url}/gradio_api/call/{api_name}/{answer.json()['event_id']}", timeout=60).text


def raw_arguments(server, asked, alpha=1.0, path=None):
    if path is None:
        with open(asked["picture"]["path"], "rb") as file:
            [path] = httpx.post(f"{server.url}/gradio_api/upload", files={"files": file}).json()
    picture = {"path": path, "meta": {"_type": "gradio.FileData"}}
    return [picture, asked["question"], alpha, 0.5, 0, 4, "cascade", "all", 16]


def test_not_a_number_is_refused(server, asked):
    assert "event: complete" in call(server, raw_arguments(server, asked))
    # json.dumps writes NaN, which is no JSON but what a careless client sends
    reply = call(server, raw_arguments(server, asked, alpha=float("nan")))
    assert "event: error" in reply and "alpha=nan must be a finite number" in reply
    reply = call(server, raw_arguments(server, asked, alpha="nan"))
    assert "event: error" in reply and "nan" in reply


def test_files_of_the_server_are_not_read(server, asked):
    reply = call(server, raw_arguments(server, asked, path="/etc/hostname"))
    assert "event: error" in reply and "event: complete" not in reply


def test_long_requests_are_refused(server):
    long = call(server, ["x" * 3_000_000])
    assert long.status_code == 413 and "longer than" in long.json()["detail"]

    def unannounced():
        for _ in range(40):
            yield b"x" * 100_000

    url = f"{server.url}/gradio_api/call/ask"
    with contextlib.suppress(httpx.WriteError):  # refused before everything was sent
        assert httpx.post(url, content=unannounced(), headers=JSON).status_code == 413
    large = httpx.post(f"{server.url}/gradio_api/upload", files={"files": b"x" * (11 * 2**20)})
    assert large.status_code == 413


def test_the_log_holds_no_stack_trace_of_all_this(server):
    """What `messages_only` does not know is logged as unexpected; all above were mistakes of visitors."""
    log = server.log.read_text()
    assert "unexpected error" not in log and "Traceback" not in log


# --- those who leave ----------------------------------------------------------------------------


def test_who_disconnects_mid_stream_frees_the_slot(monkeypatch, tmp_path):
    """Both slots taken by answers of ten seconds; their clients vanish; the next is served, the model rests."""
    from space.app import launch
    from space.engine import Engine
    from vift_eval.models import BUNDLED

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    engine, steps, delay = Engine(str(BUNDLED)), [], [0.0]
    engine.model.register_forward_pre_hook(lambda *_: (steps.append(1), time.sleep(delay[0]))[0])
    _, url, _ = launch(engine, prevent_thread_lock=True, quiet=True)
    try:
        client = Client(url, verbose=False)
        picture, *_ = client.predict(seed=3, api_name="/new_scene")
        asked = {"picture": handle_file(picture), "question": "describe the picture in detail ."}
        expected = client.predict(**asked, api_name="/ask")
        whole, delay[0] = len(steps), 0.4  # an answer takes 25 steps, two take 50
        upload = {"path": picture, "meta": {"_type": "gradio.FileData"}}
        streams, fn = [], next(d["id"] for d in client.config["dependencies"] if d["api_name"] == "ask")
        for number in range(2):
            with open(picture, "rb") as file:
                [path] = httpx.post(f"{url}gradio_api/upload", files={"files": file}).json()
            data = [upload | {"path": path}, asked["question"], 1.0, 0.5, 0, 4, "cascade", "all", 64]
            session = f"leaver{number}"
            body = {"data": data, "fn_index": fn, "session_hash": session}
            assert httpx.post(f"{url}gradio_api/queue/join", json=body).status_code == 200
            streams.append(session)
        with httpx.Client(timeout=60) as one, httpx.Client(timeout=60) as two:
            for web, session in zip((one, two), streams):
                with web.stream("GET", f"{url}gradio_api/queue/data", params={"session_hash": session}) as events:
                    for line in events.iter_lines():
                        if "process_generating" in line:
                            break  # mid-stream; leaving the block closes the connection
        deadline = time.monotonic() + 60
        still = -1
        while still != len(steps) and time.monotonic() < deadline:
            still = len(steps)
            time.sleep(1.2)  # three steps
        assert len(steps) - whole < 40, "the model went on for those who left"
        delay[0] = 0.0
        assert client.submit(**asked, api_name="/ask").result(timeout=60) == expected
    finally:
        import gradio

        gradio.close_all(verbose=False)
