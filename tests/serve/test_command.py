"""`python -m vift_serve`: which server it starts, and the line that asks it."""

import asyncio
import importlib.util
import json
import os
import shlex
import sys

import pytest

from vift_serve import __main__ as command
from vift_serve.http import MisplacedSettings


def test_the_printed_line_is_a_request():
    words = shlex.split(
        command.curl("some/model", "0.0.0.0", 8123, vllm=True).replace("$(base64 -w0 picture.png)", "AAAA")
    )
    body = json.loads(words[words.index("-d") + 1])
    assert words[:2] == ["curl", "http://127.0.0.1:8123/v1/chat/completions"] and body["model"] == "some/model"
    assert body["vllm_xargs"] == {"alpha": 1.0, "beta": 0.1}
    assert "vllm_xargs" not in command.curl("some/model", "::", 1, vllm=False)


@pytest.mark.parametrize("model", [["some/model"], ["--model", "some/model"]])
def test_without_vllm_it_is_transformers_server(monkeypatch, capsys, model):
    started = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(os, "execv", lambda path, argv: started.append(argv) or sys.exit(0))
    with pytest.raises(SystemExit):
        command.main([*model, "--port", "8123", "--device", "cpu"])
    assert started[0][1:] == [
        *("serve", "some/model", "--host", "127.0.0.1", "--port", "8123", "--device", "cpu")
    ]  # code of the Hub runs when asked for
    shown = capsys.readouterr().out
    assert "curl http://127.0.0.1:8123/" in shown and "vLLM is not installed" in shown


@pytest.mark.parametrize(
    "plugins, named", [("other", "VLLM_PLUGINS='other' leaves 'vift' out"), (None, "vLLM does not know vift_serve")]
)
def test_a_server_that_would_not_fuse_does_not_start(monkeypatch, capsys, plugins, named):
    from types import SimpleNamespace

    known = [SimpleNamespace(value="vift_serve.plugin:register")] if plugins else []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(command, "entry_points", lambda group: known)
    monkeypatch.setenv("VLLM_PLUGINS", plugins or "vift")
    with pytest.raises(SystemExit) as end:
        command.main(["some/model"])
    assert end.value.code == 2 and named in capsys.readouterr().err


def test_a_folder_that_is_no_model_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        command.main([str(tmp_path)])
    assert end.value.code == 2 and "the folder has no config.json" in capsys.readouterr().err


def answered(body: bytes, path="/v1/chat/completions"):
    """(what the app behind the middleware read, what was sent in its place)."""
    parts = [{"type": "http.request", "body": body[:9], "more_body": True}, {"type": "http.request", "body": body[9:]}]
    read, sent = [], []

    async def receive():
        return parts.pop(0) if parts else {"type": "http.disconnect"}

    async def app(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            read.append(message["body"])

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path}
    asyncio.run(MisplacedSettings(app)(scope, receive, send))
    return b"".join(read), sent


def test_settings_beside_the_messages_are_refused():
    for name in ("fusion", "beta", "fusion_layers"):
        read, sent = answered(json.dumps({"messages": [], name: 0.1}).encode())
        assert read == b"" and sent[0]["status"] == 400 and f"{name!r} stands beside" in sent[1]["body"].decode()
    for body in (b'{"messages": [], "vllm_xargs": {"beta": 0.1}}', b"not JSON", b"[1, 2, 3, 4, 5]"):
        assert answered(body) == (body, [])
    assert answered(b'{"beta": 0.1, "a": 1}', "/metrics") == (b'{"beta": 0.1, "a": 1}', [])
