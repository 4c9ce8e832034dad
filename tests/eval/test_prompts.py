"""The prompts of MathVista, MathVerse and MathVision, with and without the picture, as golden files.

`golden/<benchmark>.image.txt` is what the model reads, `golden/<benchmark>.text.txt` the text stream h(q): the same
prompt without its image placeholder. After an intended change, run it once with VIFT_WRITE_GOLDEN=1.
"""

import os
from pathlib import Path

import pytest

from tests.eval.benchmarks import OURS, THEIRS, write

pytestmark = pytest.mark.filterwarnings("ignore")
GOLDEN = Path(__file__).parent / "golden"
# The system message of the paper's language model; VIFT's template adds none of its own.
SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    from lmms_eval.tasks import TaskManager, get_task_dict

    os.environ.setdefault("OPENAI_API_KEY", "none")  # the benchmarks' modules make a client on import
    os.environ.setdefault("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("data")))
    include = write(tmp_path_factory.mktemp("benchmarks"))
    manager = TaskManager("ERROR", include_path=str(include), include_defaults=False, model_name="vift")
    return get_task_dict(["local_mathvista", "local_mathverse", "local_mathvision"], manager, "chat")


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    from vift_eval.lmms.model import VIFTChat

    return VIFTChat(str(tiny_checkpoint), system_prompt=SYSTEM)


@pytest.mark.parametrize("name", ["mathvista", "mathverse", "mathvision"])
def test_prompts_are_the_golden_ones(tasks, model, name):
    task = tasks[f"local_{name}"]
    seen: dict[str, list[str]] = {"image": [], "text": []}
    for doc in task.eval_docs:
        prompt, images = model._prompt(task.doc_to_messages(doc))
        assert len(images) == prompt.count("<image>") == 1
        blind, _ = model._prompt([{"role": "user", "content": [{"type": "text", "text": task.doc_to_text(doc)}]}])
        assert prompt.replace("<image>", "") == blind  # the text stream is the prompt asked without the picture
        seen["image"].append(prompt)
        seen["text"].append(blind)
    for form, prompts in seen.items():
        path, found = GOLDEN / f"{name}.{form}.txt", "\n=====\n".join(prompts)
        if os.environ.get("VIFT_WRITE_GOLDEN"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(found, encoding="utf-8")
        assert found == path.read_text(encoding="utf-8")


def test_groups_hold_the_papers_settings(monkeypatch):
    """Every task a group names exists; each carries the paper's fusion for `vift`, and only for it."""
    import lmms_eval.tasks as lmms_tasks

    loaded = {}

    class Stub:
        def __init__(self, config, model_name=None):
            self.config = config
            loaded[config["task"] if "task" in config else config["dataset_path"]] = config

    monkeypatch.setattr(lmms_tasks, "ConfigurableTask", Stub)
    monkeypatch.setattr(lmms_tasks, "ConfigurableMessagesTask", Stub)
    # of lmms-eval's own tasks, only the folders that the groups name: all of them take seconds to index
    theirs = [str(THEIRS / name) for name in ("llava-in-the-wild", "mmvet", "pope", "chartqa", "mmstar", "mmmu",
                                              "scienceqa", "coco_cap", "flickr30k", "mmlu_pro")]  # fmt: skip
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    manager = lmms_tasks.TaskManager(
        "ERROR", include_path=[str(OURS), *theirs], include_defaults=False, model_name="vift"
    )
    expected = {
        "vift_reasoning": ("reasoning", 3, 4096),
        "vift_instruct": ("instruction", 2, 768),
        "vift_perception": (False, 5, None),
        "vift_caption": (False, 2, None),
        "vift_text": (False, 14, None),
        "vift_composition": (False, 5, None),
    }
    for group, (fusion, count, tokens) in expected.items():
        loaded.clear()
        (found,) = manager.load_task_or_group([group], "chat").values()
        configs = [task.config for task in flat(found)]
        assert len(configs) == count, group
        for config in configs:
            assert config["model_specific_generation_kwargs"]["vift"] == {"fusion": fusion}, group
            assert "fusion" not in (config.get("generation_kwargs") or {})
            if tokens:
                assert config["generation_kwargs"]["max_new_tokens"] == tokens


def flat(tasks):
    for task in tasks.values():
        if isinstance(task, dict):
            yield from flat(task)
        else:
            yield task


def test_the_right_captions_place_is_even_and_fixed():
    from vift_eval.lmms.tasks import pair_choices, pair_letter, pair_score, pair_target

    docs = [{"caption": f"caption {i}", "negative_caption": "other"} for i in range(400)]
    letters = [pair_letter(doc) for doc in docs]
    assert 160 < letters.count("A") < 240
    assert all(pair_choices(doc)[pair_target(doc)] == doc["caption"] for doc in docs)
    assert pair_score(docs[0], [f"{letters[0]}."]) == {"accuracy": 1.0, "no_letter": 0.0}
    assert pair_score(docs[0], ["neither"]) == {"accuracy": 0.0, "no_letter": 1.0}


def test_caption_scores():
    from vift_eval.lmms.tasks import micro_caption_score

    doc = {"scene_text": "top left red 7 , middle center blue 3 ."}
    right = "the picture shows 2 digits : top left red 7 , middle center blue 3 ."
    assert micro_caption_score(doc, [right]) == {"caption_exact": 1.0, "object_f1": 1.0}
    half = micro_caption_score(doc, ["the picture shows 2 digits : top left red 7 , middle center blue 4 ."])
    assert half == {"caption_exact": 0.0, "object_f1": 0.5}
    assert micro_caption_score(doc, [""]) == {"caption_exact": 0.0, "object_f1": 0.0}
