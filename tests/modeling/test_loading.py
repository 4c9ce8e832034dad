"""A checkpoint loads on a machine that has never seen this package, and the code it carries is fit for that."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers.dynamic_module_utils import get_imports

import modeling_vift
from tests.modeling.checkpoint import chat, save_checkpoint

CODE = Path(modeling_vift.__file__).parent

# Runs in a fresh interpreter that cannot import our packages; prints what it found as JSON.
SCRIPT = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_vift", "vift_microworld", "vift_train", "vift_eval"):
            raise ModuleNotFoundError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocked())
import torch, transformers
from PIL import Image

path = sys.argv[1]
found = {}
for name in ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
    model = getattr(transformers, name).from_pretrained(path, trust_remote_code=True)
    found[name] = [type(model).__name__, hasattr(model, "generate")]
processor = transformers.AutoProcessor.from_pretrained(path)
found["processor"] = type(processor).__name__
messages = json.loads(sys.argv[2])
image = Image.new("RGB", (20, 20), (200, 30, 30))
text = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(text=text, images=[image], return_tensors="pt")
for key, kwargs in {"fused": {"beta": 1.5, "fusion_layers": 1.0}, "plain": {"fusion": False}}.items():
    found[key] = model.generate(**inputs, max_new_tokens=5, do_sample=False, **kwargs)[0].tolist()
pipe = transformers.pipeline("image-text-to-text", model=path, trust_remote_code=True)
messages[-1]["content"][0] = {"type": "image", "image": image}
out = pipe(text=messages, max_new_tokens=5, do_sample=False, return_full_text=False,
           generate_kwargs={"beta": 1.5, "fusion_layers": 1.0})
found["pipeline"] = out[0]["generated_text"]
found["ours"] = sorted(m for m in sys.modules if m.split(".")[0] in ("modeling_vift", "vift_eval"))
print("RESULT " + json.dumps(found))
"""


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    """A checkpoint in the Hub cache's layout: a snapshot folder of symlinks into a blobs folder."""
    root = tmp_path_factory.mktemp("hub")
    model, processor = save_checkpoint(root / "saved")
    folder = root / "models--org--vift-tiny" / "snapshots" / "0123abcd"
    blobs = root / "models--org--vift-tiny" / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted((root / "saved").iterdir())):
        (blobs / f"blob{number}").write_bytes(file.read_bytes())
        (folder / file.name).symlink_to(Path("../../blobs") / f"blob{number}")
    return folder, model, processor


def test_a_snapshot_loads_offline_without_the_package(snapshot, tmp_path):
    folder, model, processor = snapshot
    messages = chat(None, "what colour is the digit")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), json.dumps(messages)],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    results = json.loads(run.stdout.split("RESULT ")[1])
    for name in ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
        assert results[name] == ["VIFTForConditionalGeneration", True]
    assert results["processor"] == "LlavaProcessor" and results["ours"] == []
    image = Image.new("RGB", (20, 20), (200, 30, 30))
    inputs = processor(
        text=processor.apply_chat_template(messages, add_generation_prompt=True), images=[image], return_tensors="pt"
    )
    greedy = {"max_new_tokens": 5, "do_sample": False}
    fused = model.generate(**inputs, **greedy, beta=1.5, fusion_layers=1.0)[0].tolist()
    assert results["fused"] == fused
    assert results["plain"] == model.generate(**inputs, **greedy, fusion=False)[0].tolist() != fused
    new = fused[inputs["input_ids"].shape[1] :]
    assert results["pipeline"].strip() == processor.decode(new, skip_special_tokens=True)


def test_saving_and_loading_keeps_every_weight_and_setting(tmp_path):
    from transformers import AutoModel

    model, _ = save_checkpoint(tmp_path, fusion_layers="1:3", fusion_beta=0.7, fusion_span="after_image")
    loaded = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert loaded.config.fusion_layers == "1:3" and loaded.config.fusion_beta == 0.7
    assert loaded.config.fusion_span == "after_image" and loaded.config.auto_map == model.config.auto_map
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    again = tmp_path / "again"
    loaded.save_pretrained(again)  # a checkpoint saved from a loaded one is complete too
    assert {file.name for file in again.glob("*.py")} == {
        "modeling_vift.py",
        "configuration_vift.py",
        "fusion_vift.py",
        "generation_vift.py",
        "interfaces_vift.py",
        "positions_vift.py",
        "settings_vift.py",
        "text_run_vift.py",
    }
    assert type(AutoModel.from_pretrained(again, trust_remote_code=True)).__name__ == type(model).__name__


def test_remote_code_imports_torch_transformers_and_pil_only():
    for file in CODE.glob("*.py"):
        others = {name for name in get_imports(file) if name not in sys.stdlib_module_names}
        assert others <= {"torch", "transformers", "PIL"}, file.name
        text = file.read_text()
        for forbidden in ("eval(", "exec(", "pickle", "open(", "subprocess", "os.environ"):
            assert forbidden not in text.replace(".eval(", ""), f"{file.name}: {forbidden}"


@pytest.mark.parametrize("version", ["5.22.9", "5.25.0", "6.0.0"])
def test_another_transformers_is_refused_with_the_range(version, monkeypatch):
    """The range of pyproject.toml, of the code that strangers load, of the model card and of what is tested is one."""
    import importlib.metadata
    import tomllib

    from modeling_vift import configuration_vift

    declared = configuration_vift.TRANSFORMERS
    root = CODE.parent
    assert declared in tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    assert declared.removeprefix("transformers") in (root / "model_card.md").read_text().replace(" ", "")
    oldest, newest = (line.split("?= ")[1] for line in (root / "Makefile").read_text().splitlines()
                      if line.startswith(("OLDEST ", "NEWEST ")))  # fmt: skip
    from packaging.specifiers import SpecifierSet

    assert all(SpecifierSet(declared.removeprefix("transformers")).contains(v) for v in (oldest, newest))
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == "transformers" else real(name))
    with pytest.raises(ImportError, match=f"found transformers=={version}.*\n*VIFT needs {declared}: pip install"):
        exec(compile((CODE / "configuration_vift.py").read_text(), "configuration", "exec"),
             {"__name__": "modeling_vift.configuration_vift", "__package__": "modeling_vift"})  # fmt: skip


def test_remote_code_is_short():
    """What a checkpoint carries, and what is for other models besides."""
    lines = {file.name: len(file.read_text().splitlines()) for file in CODE.glob("*.py")}
    others = [lines.pop(name) for name in ("__init__.py", "attach_vift.py", "generate.py")]
    assert sum(lines.values()) < 1500 and sum(others) < 200


def test_the_default_config_is_the_7b_model():
    config = modeling_vift.VIFTConfig()
    vision, text = config.vision_config, config.text_config
    assert (vision.model_type, vision.hidden_size, vision.num_hidden_layers) == ("siglip_vision_model", 1152, 27)
    assert (vision.image_size // vision.patch_size) ** 2 == config.image_seq_length == 729
    assert (text.model_type, text.hidden_size, text.num_hidden_layers) == ("qwen2", 3584, 28)
    assert config.vision_feature_layer == -2 and config.vision_feature_select_strategy == "full"
    from modeling_vift import resolve_fusion

    assert resolve_fusion(config).layers == tuple(range(14, 28))
    with torch.device("meta"):
        model = modeling_vift.VIFTForConditionalGeneration(config)
    parameters = sum(p.numel() for p in model.parameters())
    assert 8.0e9 < parameters < 8.2e9  # Qwen2.5-7B 7.6e9, SigLIP-so400m 0.4e9, connector 17e6


def test_the_template_without_images_is_the_text_only_prompt():
    from tests.modeling.checkpoint import tiny_processor

    processor = tiny_processor()

    def render(messages, **kwargs):
        return processor.apply_chat_template(messages, add_generation_prompt=True, **kwargs)

    question = "what colour is the digit"
    assert render(chat(None, question)).replace("<image>", "") == render(chat(question))
    assert render(chat(None, None, question, system="answer")) == (
        "<|im_start|>system\nanswer<|im_end|>\n<|im_start|>user\n<image><image>what colour is the digit<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    turns = [*chat(None, question), {"role": "assistant", "content": "red"}, *chat("how many")]
    out = processor.tokenizer.apply_chat_template(
        turns, chat_template=processor.chat_template, return_dict=True, return_assistant_tokens_mask=True
    )
    marked = [i for i, mask in zip(out["input_ids"], out["assistant_masks"]) if mask]
    assert processor.tokenizer.convert_ids_to_tokens(marked) == ["red", "<|im_end|>"]
