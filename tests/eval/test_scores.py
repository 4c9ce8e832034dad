"""No score without the judgements, the pictures, the questions and the weights that it is of."""

import io
import json

import pytest
from PIL import Image, ImageFile

from tests.eval.benchmarks import OURS, write
from tests.eval.judge import judge
from tests.eval.test_lmms import ask
from tests.status import status_of

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def include(tmp_path_factory):
    return write(tmp_path_factory.mktemp("scores") / "benchmarks")


def point_at(url, monkeypatch):
    """The judge is at `url`, for tasks that were loaded before it was known, too."""
    import time

    import openai
    from lmms_eval.llm_judge.providers import OpenAIProvider

    def client(provider):
        return openai.OpenAI(api_key="none", base_url=url, max_retries=0)

    monkeypatch.setattr(OpenAIProvider, "client", property(client, lambda *_: None), raising=False)
    monkeypatch.setattr(OpenAIProvider, "is_available", lambda provider: True)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def judged_by(url, tasks, include, checkpoint, monkeypatch):
    point_at(url, monkeypatch)
    return ask(tasks, include, ",beta=0.1,fusion_layers=1:3", batch_size=4, pretrained=checkpoint)


JUDGED = ["local_llava", "local_mathvision"]


def card(results, folder, checkpoint):
    """Exit status of `vift card` on results as lmms-eval writes them."""
    from vift_eval.lmms.results import main

    results = {name: part for name, part in results.items() if name not in ("samples", "configs")}
    results |= {"date": "20261126", "configs": {name: {"dataset_path": "json"} for name in results["results"]}}
    path = folder / "results.json"
    path.write_text(json.dumps(results, default=str))
    return status_of(main, ["--results", path, "--model", checkpoint, "--repo", "me/vift"])


@pytest.mark.parametrize(("marks", "status"), [(None, 429), ("", 200), ("Both are lovely, 7 of 9 say.", 200)])
def test_a_judge_that_gives_no_mark_gives_no_score(
    include, tiny_checkpoint, tmp_path, monkeypatch, capsys, marks, status
):
    with judge(marks, status) as (url, _):
        results = judged_by(url, JUDGED, include, tiny_checkpoint, monkeypatch)
    for name in JUDGED:
        counts = results["vift"]["tasks"][name]["judge"]
        assert (
            counts["failed"] == counts["asked"] == results["vift"]["tasks"][name]["documents"] and not counts["judged"]
        )
        assert set(results["results"][name]) == {"alias"}
    assert card(results, tmp_path, tiny_checkpoint) == 2
    assert "judgements failed" in capsys.readouterr().err and not (tiny_checkpoint / "README.md").exists()


def test_a_judge_that_marks_is_counted_and_its_score_stays(include, tiny_checkpoint, monkeypatch):
    with judge() as (url, _):
        results = judged_by(url, JUDGED, include, tiny_checkpoint, monkeypatch)
    counts = {name: results["vift"]["tasks"][name]["judge"] for name in JUDGED}
    assert all(one["judged"] == one["asked"] and not one["failed"] for one in counts.values())
    assert [one["asked"] for one in counts.values()] == [3, 3]
    assert results["results"]["local_llava"]["gpt_eval_llava_all,none"] == 50.0


@pytest.mark.parametrize(
    ("words", "right", "wrong"),
    [
        ("# Strict Output format", ["1", "0", "[1]", "Score: 0", "Yes."], ["7 of 9", "", "1 or 0", "10"]),
        ("only two values", ["8 4", "8.5, 10\nThe first."], ["-1 -1", "Assistant 1: 8, 2: 7", "8", "11 2", "nan 1"]),
        ("the last space of the correctness score", ["0.4", "1.0 as both"], ["8", "It is 0.4", "-0.1"]),
        ("extract the answer", ["two", "3"], [" "]),
    ],
)
def test_a_mark_has_the_form_that_the_prompt_asks_for(words, right, wrong):
    from vift_eval.lmms.judges import usable

    assert [usable(words, reply) for reply in right + wrong] == [True] * len(right) + [False] * len(wrong)


def test_a_part_of_the_questions_is_counted_and_not_published(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    """By --limit, by --offset, or because a cache answered."""
    from lmms_eval import evaluator
    from lmms_eval.tasks import TaskManager

    manager = TaskManager("ERROR", include_path=str(OURS), include_defaults=False, model_name="vift")
    options = {"model": "vift", "model_args": f"pretrained={tiny_checkpoint}", "task_manager": manager}
    options |= {"batch_size": 50, "tasks": ["vift_micro_validation"]}
    whole = evaluator.simple_evaluate(**options, offset=0, limit=4)["n-samples"]["vift_micro_validation"]["original"]
    results = evaluator.simple_evaluate(**options, offset=whole - 3)
    assert results["vift"]["tasks"]["vift_micro_validation"]["documents"] == 3
    assert card(results, tmp_path, tiny_checkpoint) == 2
    assert f"asked 3 of {whole} questions" in capsys.readouterr().err
    for _ in range(2):  # the second could be answered from the cache
        results = evaluator.simple_evaluate(**options, limit=3, use_cache=str(tmp_path / "cache"))
        assert results["vift"]["tasks"]["vift_micro_validation"]["documents"] == 3
    results["vift"]["tasks"] = {}
    assert card(results, tmp_path, tiny_checkpoint) == 2 and "asked 0 of" in capsys.readouterr().err


def test_weights_are_known_or_nothing_is_published(tiny_checkpoint, tmp_path, capsys):
    results = {"results": {"t": {"a,none": 1.0}}, "n-samples": {"t": {"original": 1, "effective": 1}}}
    results["vift"] = {"model": {"weights_sha256": None}, "tasks": {"t": {"requests": 1, "failed": []}}}
    assert card(results, tmp_path, tiny_checkpoint) == 2 and "weights unknown" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_picture_is_not_scored_under_lmms_evals_switch(
    include, tiny_checkpoint, tmp_path, monkeypatch, kind
):
    """Neither from a data set nor from a file; the switch stays as the other library left it."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    from vift_eval.images import ImageError, open_image
    from vift_eval.lmms.model import RequestError

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    buffer = io.BytesIO()
    Image.effect_noise((48, 48), 90).convert("RGB").save(buffer, kind)
    (tmp_path / "cut").write_bytes(cut := buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(ImageError, match="truncated"):
        open_image(tmp_path / "cut")
    names = ("question_id", "question", "answer", "category")
    rows = {name: ["yes", "yes"] for name in names} | {"image": [{"bytes": one} for one in (buffer.getvalue(), cut)]}
    features = Features({"image": ImageFeature()} | {name: Value("string") for name in names})
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / "test.parquet")
    shipped = (include / "local_pope.yaml").read_text().replace("local_pope", "cut_pope")
    shipped = shipped.replace(str(include.parent / "pope"), str(tmp_path / "data"))
    (tmp_path / "cut.yaml").write_text(shipped)
    with pytest.raises(RequestError, match="cut_pope, document 1: OSError.*(?i:truncated)"):
        ask(["cut_pope"], tmp_path, pretrained=tiny_checkpoint, batch_size=2)
    results = ask(["cut_pope"], tmp_path, ",on_error=report", pretrained=tiny_checkpoint, batch_size=2)
    assert [one["doc_id"] for one in results["vift"]["tasks"]["cut_pope"]["failed"]] == [1]
    assert ImageFile.LOAD_TRUNCATED_IMAGES
