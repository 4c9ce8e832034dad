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
from pathlib import Path

import pytest
from PIL import Image

from tests.modeling.checkpoint import chat, save_checkpoint

pytest.importorskip("fastapi", reason="`transformers serve` needs transformers[serving]")


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    return json.loads(urllib.request.urlopen(request, timeout=120).read())


def test_serve_answers_fused(tmp_path):
    model, processor = save_checkpoint(tmp_path, fusion_beta=1.5, fusion_layers=1.0)
    image, png, question = Image.new("RGB", (20, 20), (200, 30, 30)), io.BytesIO(), "what colour is the digit"
    image.save(png, "PNG")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        Path(sys.executable).with_name("transformers"), "serve", tmp_path, "--trust-remote-code", "--device", "cpu",
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    assert shutil.which(command[0])
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"HF_HOME": str(tmp_path / "hub")})
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "log").read_text()[-3000:]
                time.sleep(1)
        url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
        answer = post(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            {"model": str(tmp_path), "max_tokens": 5, "messages": [{"role": "user", "content": content}]},
        )["choices"][0]["message"]["content"]
    finally:
        server.terminate()
        server.wait(30)
    prompt = processor.apply_chat_template(chat(None, question), add_generation_prompt=True)
    inputs = processor(text=prompt, images=[image], return_tensors="pt")
    fused, plain = (
        processor.decode(
            model.generate(**inputs, max_new_tokens=5, fusion=fusion)[0, inputs["input_ids"].shape[1] :],
            skip_special_tokens=True,
        ).strip()
        for fusion in (True, False)
    )
    assert answer.strip() == fused != plain
