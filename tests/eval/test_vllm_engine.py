"""lmms-eval's `engine=vllm` gives the answers of `engine=transformers` (needs vLLM, else skipped)."""

import json
import subprocess
import sys

import pytest

from studies.benchmarks.asking import MICRO, ROOT, engine_environment

SCRIPT = """
import json, sys
from studies.benchmarks.asking import MICRO, chat, pictures
from vift_eval.engine import Engine, Request
from vift_eval.models import load_model
from vift_eval.vllm_engine import VLLMEngine

vllm = VLLMEngine(str(MICRO), dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=16)
plain = Engine(*load_model(str(MICRO)))
chats = [chat(question) for _, question in pictures(12)]
for one, (picture, _) in zip(chats, pictures(12)):
    one[0]["content"][0]["image"] = picture
chats.append(chat("what is two plus three ?", image=False))
seen = []
for kwargs in ({}, {"fusion": False}, {"alpha": 1.0, "beta": 0.2, "fusion_answer": False, "max_new_tokens": 6}):
    request = Request.from_kwargs(kwargs, 24)
    answers = []
    for engine in (vllm, plain):
        prompts = [engine.render(one) for one in chats]
        parts = [prompts] if engine is vllm else [prompts[:-1], prompts[-1:]]
        answers.append([vars(one) for part in parts for one in engine.generate(engine.inputs(part), request)])
    seen.append(answers)
for kwargs in ({"num_beams": 2}, {"alpha": 9}):
    try:
        vllm.generate(vllm.inputs([vllm.render(chats[0])]), Request.from_kwargs(kwargs, 24))
    except ValueError as error:
        seen.append(str(error))
json.dump(seen, open(sys.argv[1], "w"))
"""


@pytest.mark.slow
def test_answers_are_those_of_transformers(tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed: docs/serving.md, 'Install'")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "answers.json")]
    run = subprocess.run(command, cwd=ROOT, env=engine_environment(), capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    *answers, beams, alpha = json.loads((tmp_path / "answers.json").read_text())
    for vllm, plain in answers:
        assert vllm == plain and len(vllm) == 13
    assert beams == "num_beams=2: vLLM has none; drop engine=vllm or num_beams"
    assert alpha == "alpha=9 must be a finite number in [0.0, 2.0]"


def test_without_vllm_it_says_so(monkeypatch):
    from vift_eval.vllm_engine import VLLMEngine
    from vift_hub.cli import UserError

    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match="engine=vllm needs vLLM"):
        VLLMEngine(str(MICRO))
