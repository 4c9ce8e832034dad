"""`vift train --push_to_hub` against a Hub on localhost: what is trained answers from the repository it went to."""

import json
import re
import subprocess
import sys

import pytest
from PIL import Image as PIL

from tests.hub.user import BUNDLED, HIDE_OUR_PACKAGES, ROOT, environment

REPO = "org/trained"
ASK = """
import json
from transformers import AutoModel, AutoProcessor
from PIL import Image
import torch

model = AutoModel.from_pretrained("org/trained", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("org/trained", trust_remote_code=True)
question = {"type": "text", "text": "how many digits are there ?"}
messages = [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (64, 64))}, question]}]
options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
inputs = processor.apply_chat_template(messages, **options)
scores = {}
for fusion in (True, False):
    out = model.generate(**inputs, fusion=fusion, max_new_tokens=1, output_scores=True, return_dict_in_generate=True)
    scores[fusion] = out.scores[0]
print("RESULT " + json.dumps([type(model).__name__, torch.equal(scores[True], scores[False])]))
"""


def run(command, hub, home, **variables):
    env = environment(hub, home, **variables)
    return subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, timeout=300)


def train(hub, tmp_path, repo=REPO, **variables):
    data = tmp_path / "rows.jsonl"
    data.write_text('{"instruction": "describe the picture .", "output": "red 7 ."}\n' * 8)
    options = ["--model", str(BUNDLED), "--stage", "2", "--instructions", str(data), "--train_connector", "false"]
    options += ["--output_dir", str(tmp_path / "out"), *"--learning_rate 1e-3 --max_steps 1 --bf16 false".split()]
    options += ["--push_to_hub", "--hub_model_id", repo, "--report_to", "none", "--use_cpu", "true"]
    return run([sys.executable, "-m", "vift_train", *options], hub, tmp_path, **variables)


@pytest.mark.slow
def test_a_trained_model_is_pushed_whole_and_answers_fused(hub, tmp_path):
    trained = train(hub, tmp_path)
    assert trained.returncode == 0, trained.stderr[-3000:]
    files = hub.files(REPO)
    assert {"config.json", "model.safetensors", "chat_template.jinja", "modeling_vift.py", "fusion_vift.py"} <= {
        *files
    }
    assert files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    assert files["model.safetensors"] != (BUNDLED / "model.safetensors").read_bytes()
    card = files["README.md"].decode()
    assert "pipeline_tag: image-text-to-text" in card and "stage 2, for 1 steps: language model trained" in card
    assert (
        'model="org/trained", trust_remote_code=True' in card and str(tmp_path) not in card and str(ROOT) not in card
    )
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    PIL.new("RGB", (64, 64)).save(tmp_path / "picture.png")
    snippet = snippet.replace("What is in the picture?", "how many digits are there ?")
    pasted = run([sys.executable, "-c", snippet], hub, tmp_path)
    assert pasted.returncode == 0 and pasted.stdout.strip(), pasted.stderr[-3000:]
    answered = run([sys.executable, "-c", HIDE_OUR_PACKAGES + ASK], hub, tmp_path)
    assert answered.returncode == 0, answered.stderr[-3000:]
    assert json.loads(answered.stdout.split("RESULT ")[1]) == ["VIFTForConditionalGeneration", False]


def test_a_repository_that_cannot_be_made_stops_the_run_before_it_trains(hub, tmp_path):
    trained = train(hub, tmp_path, "org/forbidden", HF_TOKEN="hf_reader")
    assert trained.returncode == 2 and "Traceback" not in trained.stderr, trained.stderr[-3000:]
    assert "vift train: error: hub_model_id=org/forbidden: 403 Forbidden" in trained.stderr
    assert "train_runtime" not in trained.stdout and not (tmp_path / "out" / "model.safetensors").exists()


def test_a_push_that_is_refused_leaves_the_trained_weights(hub, tmp_path):
    hub.put("org/foreign", {"README.md": b"theirs"})
    trained = train(hub, tmp_path, "org/foreign", HF_TOKEN="hf_reader")
    assert trained.returncode == 2 and "Traceback" not in trained.stderr, trained.stderr[-3000:]
    assert "hub_model_id=org/foreign: 403 Forbidden" in trained.stderr and "output_dir" in trained.stderr
    assert (tmp_path / "out" / "model.safetensors").exists() and hub.files("org/foreign") == {"README.md": b"theirs"}
