"""`lmms_eval --model vift`: the real command line, offline, and what holds between ways of asking.

Two command lines run side by side (one rank in batches of 8; two ranks), everything else in this process. How well the
bundled model answers is nobody's promise here, only that all ways of asking give the same answers.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.eval.benchmarks import OURS, ROOT, write
from tests.eval.judge import judge
from tests.modeling.tiny import text_passes

pytestmark = pytest.mark.filterwarnings("ignore")
MODEL = ROOT / "checkpoints" / "vift-micro"
N = 30


def command(tasks: str, include: Path, output: Path, *more, ranks: int = 1, **env):
    """A running `python -m lmms_eval --model vift`, as a user starts it."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    arguments = ["-m", "lmms_eval", "--model", "vift", "--model_args", f"pretrained={MODEL}", "--tasks", tasks,
                 "--include_path", str(include), "--output_path", str(output), "--log_samples", *more]  # fmt: skip
    env = os.environ | {"HF_MODULES_CACHE": str(output / "modules"), "HF_DATASETS_CACHE": str(output / "data")} | env
    return subprocess.Popen([sys.executable, *launch, *arguments], cwd=ROOT, env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def results_of(process, output: Path) -> tuple[dict, dict]:
    """(results file, task -> answers by document). lmms-eval leaves with status 0 when it fails: the file decides."""
    log, _ = process.communicate(timeout=900)
    files = list(output.glob("*/*_results.json"))
    assert process.returncode == 0 and len(files) == 1, f"no results file\n{log[-3000:]}"
    answers = {}
    for path in files[0].parent.glob("*_samples_*.jsonl"):
        samples = [json.loads(line) for line in path.read_text().splitlines()]
        answers[path.stem.split("_samples_")[1]] = {one["doc_id"]: one["filtered_resps"] for one in samples}
    return json.loads(files[0].read_text()), answers


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Both command lines: {"one": (results, answers), "two": ..., "asked": what the judge was asked}."""
    folder = tmp_path_factory.mktemp("lmms")
    include = write(folder / "benchmarks")
    (include / "micro.yaml").write_text(f"include: {OURS}/vift_micro/vift_micro_visual.yaml\ntask: local_micro\n")
    with judge() as (url, asked):
        api = {"API_TYPE": "openai", "OPENAI_API_URL": url, "OPENAI_API_KEY": "none", "MODEL_VERSION": "stub"}
        limit = ("--limit", str(N))
        one = command("local_micro,local_pope,local_mathvision,local_llava", include, folder / "one", *limit,
                      "--batch_size", "8", **api)  # fmt: skip
        two = command("vift_micro", OURS, folder / "two", *limit, "--batch_size", "4", ranks=2)
        return {"one": results_of(one, folder / "one"), "two": results_of(two, folder / "two"), "asked": asked,
                "tasks": include}  # fmt: skip


@pytest.fixture(scope="module")
def bundled():
    from vift_eval.models import load_model

    return load_model(str(MODEL))


def ask(tasks, include, model_args="", simple=False, batch_size=1, limit=N, pretrained=MODEL):
    """`simple_evaluate` with nothing but the tasks of `include` (indexing all of lmms-eval takes seconds)."""
    from lmms_eval import evaluator
    from lmms_eval.tasks import TaskManager

    manager = TaskManager("ERROR", include_path=str(include), include_defaults=False, model_name="vift")
    return evaluator.simple_evaluate(
        model="vift",
        model_args=f"pretrained={pretrained}{model_args}",
        tasks=tasks,
        task_manager=manager,
        batch_size=batch_size,
        limit=limit,
        force_simple=simple,
    )


def said(results, task):
    return {one["doc_id"]: one["filtered_resps"][0] for one in results["samples"][task]}


def test_all_ways_of_asking_give_the_answers_of_the_demo(runs, bundled):
    """vift demo = one rank, chat, batch 8 = two ranks = simple, batch 1 = chat, batch 1."""
    from vift_eval.answers.conditions import evaluate
    from vift_microworld import exact_match, visual_questions

    questions = visual_questions(N, split="test")
    demo = dict(enumerate(evaluate(*bundled, questions, "fused")))
    assert len(set(demo.values())) > 3
    results, answers = runs["one"]
    assert answers["local_micro"] == demo
    assert runs["two"][1]["vift_micro_visual"] == demo
    assert said(ask(["vift_micro_visual"], OURS, simple=True), "vift_micro_visual") == demo
    assert said(ask(["vift_micro_visual"], OURS), "vift_micro_visual") == demo
    accuracy = sum(exact_match(demo[i], row["answer"]) for i, row in enumerate(questions)) / N
    for found, task in ((results, "local_micro"), (runs["two"][0], "vift_micro_visual")):
        assert found["results"][task]["exact_match,none"] == pytest.approx(accuracy)


def test_the_process_group_is_closed_before_python_shuts_down(tiny_checkpoint):
    """A thread of gloo aborts the process otherwise, now and then."""
    code = """import atexit, sys, torch.distributed as dist
atexit.register(lambda: print("open" if dist.is_initialized() else "closed"))  # runs after those registered later
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
from vift_eval.lmms.model import VIFTSimple
VIFTSimple(sys.argv[1])
print("open" if dist.is_initialized() else "closed")"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_checkpoint)], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split()[-2:] == ["open", "closed"], done.stderr[-2000:]


def test_text_questions_are_the_demos_scene_in_words(runs, bundled):
    from vift_eval.answers.conditions import evaluate
    from vift_microworld import visual_questions

    in_words = evaluate(*bundled, visual_questions(N, split="test"), "oracle_text")
    results, answers = runs["two"]
    assert answers["vift_micro_text"] == dict(enumerate(in_words))
    assert 0 < results["results"]["vift_micro_caption"]["object_f1,none"] <= 1


def test_the_results_file_says_how_it_was_asked(runs):
    for name in ("one", "two"):
        results, _ = runs[name]
        vift = results["vift"]
        assert len(vift["model"]["weights_sha256"]) == 64 and vift["model"]["dtype"] == "float32"
        assert vift["packages"]["lmms-eval"] == "0.7.3" and vift["packages"]["torch"]
    tasks = runs["two"][0]["vift"]["tasks"]
    assert {task: entry["requests"] for task, entry in tasks.items()} == dict.fromkeys(tasks, N)  # of both ranks
    assert tasks["vift_micro_caption"]["settings"][0]["fusion"] is None
    assert tasks["vift_micro_visual"]["settings"][0]["fusion"]["fusion_layers"]
    tasks = runs["one"][0]["vift"]["tasks"]
    assert tasks["local_mathvision"]["settings"][0]["fusion"]["beta"] == 0.1
    assert tasks["local_mathvision"]["settings"][0]["generation"]["max_new_tokens"] == 4096
    assert tasks["local_llava"]["settings"][0]["fusion"]["beta"] == 0.15


def test_shipped_benchmarks_run_on_a_local_copy(runs):
    results, answers = runs["one"]
    assert len(answers["local_pope"]) == 2 and len(answers["local_mathvision"]) == 3
    assert {"pope_accuracy,none", "pope_f1_score,none"} <= set(results["results"]["local_pope"])
    assert results["results"]["local_mathvision"]["llm_as_judge_eval,none"] == 1.0  # the stub says 1 to everything


def test_a_judge_on_this_machine_marks_llava_bench(runs):
    results, answers = runs["one"]
    assert results["results"]["local_llava"]["gpt_eval_llava_all,none"] == 50.0  # 4 of 8
    prompts = [prompt for prompt in runs["asked"] if "[Context]" in prompt]
    assert len(prompts) == 3
    for answer in answers["local_llava"].values():
        assert any(answer in prompt for prompt in prompts)


def test_likelihoods_and_pairs(runs, tiny_checkpoint):
    """SugarCrepe is asked with letters; ARO's order by likelihood, whatever the batch."""
    results = ask(["local_sugarcrepe"], runs["tasks"], batch_size=2, pretrained=tiny_checkpoint)
    assert {"accuracy,none", "no_letter,none"} <= set(results["results"]["local_sugarcrepe"])
    task = "local_aro_coco_order_ppl"
    scores = []
    for batch_size in (1, 4):
        results = ask([task], runs["tasks"], simple=True, batch_size=batch_size, pretrained=tiny_checkpoint)
        assert results["results"][task]["acc,none"] in (0.0, 0.5, 1.0)
        scores.append([pair[0] for one in results["samples"][task] for pair in one["filtered_resps"]])
    assert len(scores[0]) == 10 and scores[0] == pytest.approx(scores[1], rel=1e-4)
    unfused = ask([task], runs["tasks"], ",fusion=false", simple=True, batch_size=4, pretrained=tiny_checkpoint)
    plain = [pair[0] for one in unfused["samples"][task] for pair in one["filtered_resps"]]
    assert plain != pytest.approx(scores[0], rel=1e-4)


# --- the class itself -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    from vift_eval.lmms.model import VIFTSimple

    return VIFTSimple(str(tiny_checkpoint), batch_size=4)


class Task:
    """As much of a task as a request holds on to."""

    def __init__(self, docs):
        self.docs, self._instances = docs, []

    def visual(self, doc):
        return doc.get("images", [])

    def request(self, doc_id, text, kwargs, task="t"):
        from lmms_eval.api.instance import Instance

        metadata = {"task": task, "doc_id": doc_id, "repeats": 1}
        arguments = (text, kwargs, self.visual, doc_id, task, "test")
        one = Instance("generate_until", arguments, 0, metadata)
        self._instances.append(one)
        return one


@pytest.fixture
def task(model):
    from PIL import Image

    task = Task([{"images": [Image.new("RGB", (48, 48), color)]} for color in ("red", "green", "blue")] + [{}])
    model.task_dict = {name: {"test": task.docs} for name in ("t", "u")}
    return task


def test_one_batch_mixes_tasks_and_keeps_each_requests_settings(model, task):
    """Order kept; `generation_kwargs` untouched; no answer cut at the blank line that lmms-eval injects."""
    short, long = {"max_new_tokens": 3, "until": ["\n\n"]}, {"max_new_tokens": 9}
    requests = [task.request(0, "how many digits are there ?", short), task.request(1, "red", long, "u"),
                task.request(2, "what is the sum ?", short, "u"), task.request(3, "text only", long)]  # fmt: skip
    alone = [model.generate_until([one])[0] for one in requests]
    together = model.generate_until(requests)
    assert [one.text for one in together] == [one.text for one in alone]
    assert [one.token_counts for one in together] == [one.token_counts for one in alone]
    assert [one.token_counts.output_tokens <= most for one, most in zip(together, (3, 9, 3, 9))] == [True] * 4
    assert short == {"max_new_tokens": 3, "until": ["\n\n"]} and long == {"max_new_tokens": 9}


def test_batches_hold_as_many_pictures_a_row_and_a_question_asked_again_is_not_run_again(model, task):
    task.docs.append(
        {"images": [image for doc in task.docs[:2] for image in doc["images"]]}
    )  # document 4: two pictures
    settings = {"max_new_tokens": 2, "alpha": 1.0, "beta": 0.3, "fusion_layers": "1:3"}
    texts = {0: "red", 1: "how many digits ?", 2: "red", 3: "a text with no picture at all", 4: "same ?"}
    requests = [task.request(doc, texts[doc], settings) for doc in (0, 3, 4, 1, 4, 3, 2, 0, 4)]
    batches = [[requests[i].doc_id for i in batch] for _, batch in model._batches(requests, [settings] * 9)]
    assert batches == [[4, 4, 4, 1], [0, 2, 0, 3], [3]]
    passes = text_passes(model.engine.model)
    answers = [one.text for one in model.generate_until(requests)]
    assert [rows for rows, _ in passes] == [2, 1], "three questions with pictures, each run once"
    assert answers == [model.generate_until([one])[0].text for one in requests] and len(passes) == 2


def test_until_cuts_except_the_injected_blank_line():
    from vift_eval.engine import Request

    assert Request.from_kwargs({"until": ["\n\n"]}, 7).cut("a\n\nb") == "a\n\nb"
    assert Request.from_kwargs({"until": ["\n\n", "Q:"]}, 7).cut("a\n\nQ: b") == "a"
    assert Request.from_kwargs({"until": "Q:"}, 7).cut("a Q: b") == "a"
    assert Request.from_kwargs({"do_sample": True}, 7).generation == {"do_sample": True}  # at the model's temperature
    assert Request.from_kwargs({"temperature": 0.2}, 7).generation == {"do_sample": True, "temperature": 0.2}
    with pytest.raises(ValueError, match="do_sample=True with temperature=0 contradict"):
        Request.from_kwargs({"temperature": 0.0, "do_sample": True}, 7)
    request = Request.from_kwargs({"temperature": 0.2, "do_sample": False, "top_p": 1, "odd": 1}, 7)
    assert request.max_new_tokens == 7 and request.generation == {"do_sample": False} and request.unknown == ["odd"]


def test_model_args_take_the_place_of_a_tasks_fusion(model, task, tiny_checkpoint):
    from vift_eval.lmms.model import VIFTSimple

    theirs = model._request({"fusion": "instruction"})
    assert model.engine.settings(theirs).beta == 0.15
    other = VIFTSimple.create_from_arg_string(
        f"pretrained={tiny_checkpoint},beta=0.3,fusion_layers=1:3", {"batch_size": "2"}
    )
    ours = other._request({"fusion": False})
    settings = other.engine.settings(ours)
    assert settings.beta == 0.3 and settings.layers == (1, 2) and other.batch_size == 2


def test_an_exception_is_never_an_answer(model, task, tiny_checkpoint):
    """It names the request; with on_error=report the request leaves the task's scores and is listed."""
    from vift_eval.lmms.model import RequestError

    fine = task.request(0, "red", {"max_new_tokens": 3})
    bad = task.request(1, "red <image> and <image>", {"max_new_tokens": 3})
    with pytest.raises(RequestError, match=r"t, document 1.*1 images and 2 placeholders"):
        model.generate_until([fine, bad])
    model.on_error, model.record["tasks"] = "report", {}
    try:
        assert model.generate_until([fine, bad])[0].text == model.generate_until([fine])[0].text
        assert task._instances == [fine]
        assert [one["doc_id"] for one in model.record["tasks"]["t"]["failed"]] == [1]
        with pytest.raises(RequestError, match="no request could be answered"):
            task._instances = [bad]
            model.generate_until([bad])
    finally:
        model.on_error = "raise"


def test_rounds_go_on_until_the_task_ends_them(model, task):
    from lmms_eval.api.instance import Instance

    seen = []

    def next_round(doc, previous_output, round_idx, previous_round_info):
        seen.append((round_idx, list(previous_output), previous_round_info))
        return [], f"again {round_idx}", round_idx == 2, previous_output, round_idx

    arguments = ("red", {"max_new_tokens": 3}, task.visual, next_round, 0, "t", "test")
    metadata = {"task": "t", "doc_id": 0, "repeats": 1}
    rounds = model.generate_until_multi_round([Instance("generate_until_multi_round", arguments, 0, metadata)])
    assert len(rounds[0]) == 2 and [entry[0] for entry in seen] == [1, 2] and seen[1][1] == rounds[0]
    assert seen[1][2] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("pretrained=X,bta=0.2", ("bta", "beta")),
        ("beta=0.2", ("pretrained",)),
        ("pretrained=X,batch_size=auto", ("batch_size", "auto")),
        ("pretrained=X,beta=9", ("beta=9", "[-2.0, 2.0]")),
        ("pretrained=X,fusion_layers=2:9", ("2:9", "0 to 3")),
        ("pretrained=X,fusion=strong", ("strong", "reasoning")),
        ("pretrained=X,dtype=int8", ("dtype", "float32")),
        ("pretrained=X,on_error=ignore", ("on_error", "report")),
        ("pretrained=X,min_pixels=100", ("min_pixels=100", "48")),
        ("pretrained=/absent", ("pretrained=/absent",)),
    ],
)
def test_bad_model_arguments_are_refused_by_name(tiny_checkpoint, arguments, words):
    from vift_eval.lmms.model import VIFTChat

    with pytest.raises(ValueError) as refused:
        VIFTChat.create_from_arg_string(arguments.replace("X", str(tiny_checkpoint)), {"batch_size": 1})
    for word in words:
        assert word in str(refused.value)


def test_the_entry_point_is_light():
    """Every start of lmms-eval loads it, whatever model it runs."""
    code = "import sys, vift_eval.lmms.manifest; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
