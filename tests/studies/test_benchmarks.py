"""The benchmarks count what they say: memory at shapes where it can be added up by hand, and small runs of each."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Qwen2Config

FOLDER = Path(__file__).parents[2] / "studies" / "benchmarks"


def load(name, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_saved_bytes_are_counted_once_and_without_the_weights(monkeypatch):
    memory = load("memory", monkeypatch)
    layers = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4))
    x = torch.randn(3, 8, requires_grad=True)
    # the input of each Linear and of the GELU; the GELU's output is the second Linear's input
    assert memory.saved_bytes(layers, x) == 4 * (3 * 8 + 3 * 16 + 3 * 16)


def test_fake_tensors_keep_what_real_ones_keep(monkeypatch):
    memory = load("memory", monkeypatch)
    config = Qwen2Config(hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2)
    config._attn_implementation = "sdpa"
    real = memory.layer_bytes(config, rows=2, tokens=32)
    with FakeTensorMode():
        assert memory.layer_bytes(config, rows=2, tokens=32) == real
        assert memory.layer_bytes(config, rows=4, tokens=32) == pytest.approx(2 * real, rel=0.02)


def test_two_stages_save_what_the_connector_only_steps_save(monkeypatch):
    stages = load("stages", monkeypatch)
    seconds = {"web, connector": 3.0, "web, all": 4.0, "detailed, all": 4.0, "text, all": 2.0}
    assert stages.saving(seconds, {"web": 10, "detailed": 5, "text": 10}) == pytest.approx(10 / 80)


@pytest.mark.slow
def test_throughput_is_measured_for_each_plan(monkeypatch, tmp_path):
    throughput = load("throughput", monkeypatch)
    options = ["--steps", "2", "--rows", "200", "--layers", "1", "--width", "64"]
    throughput.main([*options, "--json", str(tmp_path / "found.json")])
    results = json.loads((tmp_path / "found.json").read_text())["results"]
    assert set(results) == {"stock", "pure", "limit"} and results["limit"]["padding"] == 0
    assert all(row["tokens_per_second"] > 0 for row in results.values())
