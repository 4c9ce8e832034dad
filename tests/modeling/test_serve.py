"""`transformers serve` gives the fused answer over its OpenAI-compatible HTTP API."""

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.modeling.checkpoint import chat, save_checkpoint

pytest.importorskip("fastapi", reason="`transformers serve` needs transformers[serving]")

QUESTIONS = ["what colour is the digit", "how many left", "is the top right green", "what answer"]
COLOURS = [(200, 30, 30), (30, 200, 30)]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """`transformers serve`, started for real, with two checkpoints of equal weights: `fused` and `plain` by config."""
    folder = tmp_path_factory.mktemp("serve")
    model, processor = save_checkpoint(folder / "fused", fusion_beta=1.5, fusion_layers=1.0)
    save_checkpoint(folder / "plain", fusion_beta=1.5, fusion_layers=1.0, fusion_enabled=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", "--trust-remote-code", "--device", "cpu",
               "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    assert shutil.which(command[0])
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"HF_HOME": str(folder / "hub")})
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()[-3000:]
                time.sleep(1)
        yield SimpleNamespace(
            url=f"http://127.0.0.1:{port}/v1", folder=folder, model=model, processor=processor, log=folder / "log"
        )
    finally:
        server.terminate()
        server.wait(30)


def request(served, which, question, colour, **fields):
    """A chat completion's body, the picture as a data URL."""
    png = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(png, "PNG")
    url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    return {"model": str(served.folder / which), "max_tokens": 5, "messages": messages} | fields


def expected(served, question, colour, fusion):
    prompt = served.processor.apply_chat_template(chat(None, question), add_generation_prompt=True)
    images = [Image.new("RGB", (20, 20), colour)]
    inputs = served.processor(text=prompt, images=images, return_tensors="pt")
    out = served.model.generate(**inputs, max_new_tokens=5, fusion=fusion)[0, inputs["input_ids"].shape[1] :]
    return served.processor.decode(out, skip_special_tokens=True).strip()


def curl(url, body):
    command = ["curl", "-sS", "--max-time", "300", "-H", "content-type: application/json", "-d", "@-", url]
    return subprocess.run(command, input=json.dumps(body), capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_serve_answers_fused_and_unfused_as_the_checkpoint_says(served):
    results = {}
    for which, fusion in (("fused", True), ("plain", False)):
        answer = json.loads(curl(served.url + "/chat/completions", request(served, which, QUESTIONS[0], COLOURS[0])))
        results[which] = answer["choices"][0]["message"]["content"].strip()
        assert results[which] == expected(served, QUESTIONS[0], COLOURS[0], fusion)
    assert results["fused"] != results["plain"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_serve_streams_the_fused_answer(served):
    body = request(served, "fused", QUESTIONS[0], COLOURS[0], stream=True)
    lines = curl(served.url + "/chat/completions", body).splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    parts = [event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"]]
    assert "".join(parts).strip() == expected(served, QUESTIONS[0], COLOURS[0], True)
    assert sum(map(bool, parts)) > 1, "in more than one piece"


def test_the_openai_client_is_answered_and_streamed_to(served):
    openai = pytest.importorskip("openai", reason="needs the openai client")
    client = openai.OpenAI(base_url=served.url, api_key="none", timeout=300)
    body = request(served, "fused", QUESTIONS[1], COLOURS[1])
    answer = client.chat.completions.create(**body).choices[0].message.content.strip()
    assert (
        answer == expected(served, QUESTIONS[1], COLOURS[1], True) != expected(served, QUESTIONS[1], COLOURS[1], False)
    )
    stream = client.chat.completions.create(**body, stream=True)
    parts = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(parts).strip() == answer


def test_eight_clients_at_once_get_the_answers_of_one(served):
    """Different questions, pictures and both checkpoints, all at the same time: every one is answered, and rightly."""
    asked = [(which, q, c) for which in ("fused", "plain") for q in QUESTIONS for c in COLOURS]

    def ask(which, question, colour):
        body = json.dumps(request(served, which, question, colour)).encode()
        call = urllib.request.Request(served.url + "/chat/completions", body, {"content-type": "application/json"})
        with urllib.request.urlopen(call, timeout=300) as response:
            return json.loads(response.read())["choices"][0]["message"]["content"].strip()

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda one: ask(*one), asked))
    assert answers == [expected(served, question, colour, which == "fused") for which, question, colour in asked]
    assert len(set(answers)) > 4, "the check cannot fail: the answers are all the same"
