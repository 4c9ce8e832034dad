"""Publish, load, generate: `vift push` against a Hub on localhost, and everything that can go wrong on the way."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants

from tests.hub.user import BUNDLED, HIDE_OUR_PACKAGES, PACKAGES, ROOT, environment
from vift_hub import roundtrip, stage
from vift_hub.convert import convert

EVALUATION = ROOT / "docs" / "results" / "paper" / "README.md"
REPO = "org/vift-micro"
VIFT_PUSH = [sys.executable, "-m", "vift", "push"]


@pytest.fixture(scope="module")
def published(hub, tmp_path_factory):
    """The bundled model, pushed by the console command with all that belongs to it; returns what was printed."""
    folder = tmp_path_factory.mktemp("push")
    (folder / "scores.yaml").write_text(
        yaml.safe_dump([{"dataset": {"id": "org/micro-world", "task_id": "fused"}, "value": 34.5}])
    )
    (folder / "space").mkdir()
    (folder / "space" / "README.md").write_text("---\ntitle: Demo\nsdk: gradio\n---\n")
    (folder / "space" / "app.py").write_text("print('hello')\n")
    options = {
        "--training-data": BUNDLED / "training_data.md",
        "--limits": BUNDLED / "limits.md",
        "--evaluation": EVALUATION,
        "--eval-results": folder / "scores.yaml",
        "--space": folder / "space",
        "--max-shard-size": "1MB",
    }
    command = [*VIFT_PUSH, BUNDLED, REPO, *(part for option in options.items() for part in option)]
    env = environment(hub, folder / "home")
    ran = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, cwd=folder, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


def refused(capsys, run, *args, status=2):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run([str(arg) for arg in args])
    printed = capsys.readouterr().err
    lines = [line for line in printed.splitlines() if line.startswith("vift push: ")]
    assert stopped.value.code == status and len(lines) == 1, printed
    return lines[0]


# what is published -------------------------------------------------------------------------------------------


def test_everything_is_published_in_one_commit(hub, published):
    commit = re.search(rf"published {REPO}, revision (\w{{40}})", published)[1]
    files, repo = hub.files(REPO), hub.repos["model", REPO]
    assert len(repo.commits) == 3, "the empty one, the model, the card's pin"
    assert set(repo.commits[commit]) == set(files)
    assert {path for path in files if repo.commits[commit][path] != files[path]} == {"README.md"}
    shards = {path for path in files if path.endswith(".safetensors")}
    assert len(shards) > 1 and all(len(files[path]) < 1.1e6 for path in shards)
    assert set(json.loads(files["model.safetensors.index.json"])["weight_map"].values()) == shards
    config = json.loads(files["config.json"])
    assert set(config["auto_map"]) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForImageTextToText",
        "AutoModelForMultimodalLM",
    }
    for name in ("modeling_vift.py", "generation_vift.py", "text_run_vift.py", "fusion_vift.py"):
        assert files[name] == (stage.CODE / name).read_bytes()
    for name in stage.CUSTOM_GENERATE:
        assert files[f"custom_generate/{name}"] == (stage.CODE / name).read_bytes()
    assert [path for path in files if path.endswith(".jinja")] == ["chat_template.jinja"]
    assert "chat_template" not in json.loads(files["tokenizer_config.json"])
    assert {"processor_config.json", "tokenizer.json", "generation_config.json"} <= set(files)
    assert yaml.safe_load(files[".eval_results/scores.yaml"])[0]["value"] == 34.5
    text = b"".join(data for path, data in files.items() if not path.endswith(".safetensors")).decode()
    assert str(ROOT) not in text and "/tmp/" not in text, "a path of this machine"
    assert set(hub.files(REPO, repo_type="space")) == {".gitattributes", "README.md", "app.py"}


def test_the_card_is_filled_and_pinned(hub, published):
    commit = re.search(rf"published {REPO}, revision (\w{{40}})", published)[1]
    card = hub.files(REPO)["README.md"].decode()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["library_name"] == "transformers" and metadata["license"] == "apache-2.0"
    assert "{{" not in card and "<!--" not in card.split("---", 2)[2].split("##")[0]
    assert card.count(commit) == 2 and card.count(f'"{REPO}"') == 2
    table = EVALUATION.read_text(encoding="utf-8")
    assert re.search(r"^\| `fused` \| [\d.]+ / .*\|$", table, re.M)[0] in card, "the table of the results file"
    assert "make paper (commit " in card, "with its command"
    assert "![" not in card, "no picture that is not uploaded"
    assert "load_digits" in card and "three rows of three cells" in card
    assert "| Parameters | 2.3 M |" in card and "β 1.0, layers 1:2, cascade" in card
    headings = re.findall(r"^#+ .*", re.sub(r"^```.*?^```", "", card, flags=re.M | re.S), re.M)
    assert headings[0] == f"# {REPO}" and all(re.match("##+ ", heading) for heading in headings[1:])


SCRIPT = """
import contextlib, io, json, re, sys

card = open(sys.argv[1]).read()
results = []
for code in re.findall(r"^```python\\n(.*?)^```", card, re.M | re.S):
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    tokens = names["output"][0, names["inputs"]["input_ids"].shape[1]:].tolist()
    results.append({"printed": printed.getvalue(), "tokens": tokens, "class": type(names["model"]).__name__})
model, inputs = names["model"], names["inputs"]
results.append({"native": model.generate(**inputs, max_new_tokens=64)[0, inputs["input_ids"].shape[1]:].tolist()})
from transformers import AutoModelForImageTextToText
try:
    AutoModelForImageTextToText.from_pretrained("org/vift-micro", revision="no-such-branch", trust_remote_code=True)
except OSError as error:
    results.append({"wrong revision": str(error)})
print("RESULT " + json.dumps(results))
"""


def test_every_snippet_of_the_card_runs_as_pasted(hub, published, tmp_path):
    """From the Hub, in a fresh process that cannot import our packages; also for a LLaVA that knows nothing of us."""
    convert(str(BUNDLED), tmp_path / "llava", "llava")
    hub.put("llava-hf/llava-1.5-7b-hf", {file.name: file.read_bytes() for file in (tmp_path / "llava").iterdir()})
    (tmp_path / "card.md").write_bytes(hub.files(REPO)["README.md"])
    env = environment(hub, tmp_path / "home")
    command = [sys.executable, "-c", HIDE_OUR_PACKAGES + SCRIPT, str(tmp_path / "card.md")]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    own, other, native, wrong = json.loads(ran.stdout.split("RESULT ")[1])
    assert own["class"] == "VIFTForConditionalGeneration" and own["printed"].strip()
    # the question is the same, the weights are the same: the LLaVA, native, is the VIFT, unfused
    assert other["class"] == "LlavaForConditionalGeneration" and other["printed"].strip()
    expected = expected_answers()
    assert own["tokens"] == expected["as configured"]
    assert other["tokens"] == expected["beta=0.1"]
    assert native["native"] == expected["unfused"]
    assert "no-such-branch" in wrong["wrong revision"]


ATTACHED = {"alpha": 1.0, "fusion_layers": 0.5, "fusion_answer": False}  # what attach_fusion sets by default


def expected_answers():
    """What the bundled model answers to the card's question, by this package."""
    from PIL import Image

    model, processor = stage.load(BUNDLED)
    content = [{"type": "image", "image": Image.new("RGB", (48, 48), "black")}]
    content.append({"type": "text", "text": "how many digits are there ?"})
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ways = {"as configured": {}, "unfused": {"fusion": False}, "beta=0.1": {"beta": 0.1, **ATTACHED}}
    start = inputs["input_ids"].shape[1]
    return {name: model.generate(**inputs, **how, max_new_tokens=64)[0, start:].tolist() for name, how in ways.items()}


def test_a_dry_run_lists_what_would_go_up_and_calls_nobody(hub, published, in_process, unchecked, capsys):
    calls = len(hub.log)
    in_process([str(BUNDLED), REPO, "--dry-run", "--max-shard-size", "1MB"])
    listed = {line.split(maxsplit=1)[1]: int(line.split()[0].replace(",", ""))
              for line in capsys.readouterr().out.splitlines() if re.match(r" *[\d,]+  \S+$", line)}  # fmt: skip
    files = hub.files(REPO)
    assert len(hub.log) == calls
    assert set(listed) == set(files) - {".gitattributes", ".eval_results/scores.yaml"}
    assert all(listed[path] == len(files[path]) for path in listed if path != "README.md")


# what does not load back is refused ----------------------------------------------------------------------------


def test_the_round_trip_hides_every_package_that_pyproject_names():
    assert set(PACKAGES) == roundtrip.OURS
    for package in PACKAGES:
        with pytest.raises(ModuleNotFoundError, match=package):
            roundtrip.Blocked().find_spec(f"{package}.module")


def test_a_folder_that_does_not_load_back_or_answers_otherwise_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    model, processor = stage.load(BUNDLED)
    values = dict.fromkeys(("repo_id", "revision", "facts", "training_data", "evaluation", "limits"), "x")
    folder = tmp_path / "staged"
    stage.write(folder, model, processor, values, None, "5GB")
    stage.check(folder, model, processor)
    weights = load_file(folder / "model.safetensors")
    weights["multi_modal_projector.linear_1.bias"] += 0.5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="loads back but gives other logits, so nothing is published"):
        stage.check(folder, model, processor)
    (folder / "fusion_vift.py").unlink()
    with pytest.raises(ValueError, match="does not load back, so nothing is published: .*fusion_vift.py"):
        stage.check(folder, model, processor)


def test_a_source_that_is_not_complete_is_refused(hub, in_process, unchecked, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    calls, broken = len(hub.log), tmp_path / "broken"
    shutil.copytree(BUNDLED, broken)
    weights = load_file(broken / "model.safetensors")
    del weights["multi_modal_projector.linear_1.bias"]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    error = refused(capsys, in_process, broken, "org/broken")
    assert "has 1 missing keys, such as model.multi_modal_projector.linear_1.bias" in error
    (broken / "model.safetensors").write_bytes(b"nothing")
    assert "does not load" in refused(capsys, in_process, broken, "org/broken")
    (broken / "config.json").write_text('{"model_type": "llava"}')
    assert "is a 'llava', not a VIFT: vift convert makes one" in refused(capsys, in_process, broken, "org/broken")
    (broken / "config.json").unlink()
    assert "holds no config.json" in refused(capsys, in_process, broken, "org/broken")
    bare = tmp_path / "bare"
    shutil.copytree(BUNDLED, bare)
    (bare / "chat_template.jinja").unlink()
    assert "has no chat template" in refused(capsys, in_process, bare, "org/broken")
    (bare / "scores.yaml").write_text("- value: 3\n")
    command = (BUNDLED, "org/broken", "--eval-results", bare / "scores.yaml")
    assert "is not in the Hub's format" in refused(capsys, in_process, *command)
    assert "evaluation=nowhere.md is no file" in refused(
        capsys, in_process, BUNDLED, "org/x", "--evaluation", "nowhere.md"
    )
    assert "org/a/b" in refused(capsys, in_process, BUNDLED, "org/a/b")
    assert hub.files("org/broken") is None and all(call.startswith("GET ") for call in hub.log[calls:])


# the Hub says no ---------------------------------------------------------------------------------------------


def test_no_token_a_wrong_one_and_one_without_permission(hub, in_process, unchecked, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    assert "no token: run `hf auth login`" in refused(capsys, in_process, BUNDLED, "org/new")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the Hub does not accept this token" in refused(capsys, in_process, BUNDLED, "org/new")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    error = refused(capsys, in_process, BUNDLED, "org/new")
    assert "nothing was published: this token has no permission to write to org/new" in error
    assert hub.files("org/new") is None
    hub.put("org/theirs", {"README.md": b"theirs"})
    error = refused(capsys, in_process, BUNDLED, "org/theirs", "--update")
    assert "no permission to write to org/theirs" in error and hub.files("org/theirs") == {"README.md": b"theirs"}


def test_an_existing_repository_needs_update_which_replaces_code_and_weights(hub, in_process, unchecked, capsys):
    old = {".gitattributes": b"", "notes.txt": b"kept", "old_vift.py": b"", "model-00001-of-00002.safetensors": b"old"}
    hub.put("org/old", old)
    error = refused(capsys, in_process, BUNDLED, "org/old")
    assert "org/old exists and holds 3 files: pass --update" in error and hub.files("org/old") == old
    error = refused(capsys, in_process, BUNDLED, "org/old", "--update", "--revision", "dev")
    assert "revision=dev is no branch of org/old; it has main" in error and hub.files("org/old") == old
    error = refused(capsys, in_process, BUNDLED, "org/none", "--revision", "dev")
    assert "revision=dev: org/none does not exist yet" in error and hub.files("org/none") is None
    in_process([str(BUNDLED), "org/old", "--update"])
    files = hub.files("org/old")
    assert files["notes.txt"] == b"kept" and {"config.json", "model.safetensors"} <= set(files)
    assert not {"old_vift.py", "model-00001-of-00002.safetensors"} & set(files)


@pytest.mark.parametrize("existing", [False, True])
def test_an_upload_that_breaks_off_publishes_nothing(hub, in_process, unchecked, capsys, existing):
    name = f"org/broken-{existing}"
    before = {".gitattributes": b"", "README.md": b"before"} if existing else None
    if existing:
        hub.put(name, before)
    hub.blobs.clear()
    update = ["--update"] if existing else []
    hub.break_uploads = True
    error = refused(capsys, in_process, BUNDLED, name, *update)
    assert "nothing was published: " in error and "model.safetensors" in error
    assert hub.files(name) == before and ("was removed again" in error) is not existing
    hub.break_uploads, hub.refuse_commits = False, (500, "Internal error")
    assert "Internal error" in refused(capsys, in_process, BUNDLED, name, *update)
    assert hub.files(name) == before
    if existing:
        hub.refuse_commits, hub.race = None, True
        error = refused(capsys, in_process, BUNDLED, name, *update)
        assert "was changed by someone else in the meantime" in error
        assert hub.files(name) == before | {"other.txt": b"theirs"}
        hub.race = False
    hub.refuse_commits = None
    in_process([str(BUNDLED), name, *update])  # and trying again works
    assert "model.safetensors" in hub.files(name)


def test_an_interrupted_upload_publishes_nothing(hub, in_process, unchecked, capsys):
    hub.blobs.clear()
    hub.stall_uploads = True

    def interrupt():
        while not any(call.startswith("PUT /lfs/") for call in hub.log[calls:]):
            threading.Event().wait(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    calls = len(hub.log)
    # a shell that starts the tests in the background has them ignore the signal
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        error = refused(capsys, in_process, BUNDLED, "org/interrupted", status=130)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupted; nothing was published" in error and hub.files("org/interrupted") is None


def test_a_killed_upload_leaves_an_empty_repository_that_the_next_run_fills(hub, in_process, unchecked, tmp_path):
    hub.blobs.clear()
    hub.stall_uploads = True
    calls = len(hub.log)
    command = [*VIFT_PUSH, str(BUNDLED), "org/killed"]
    process = subprocess.Popen(command, env=environment(hub, tmp_path), cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = threading.Event()
    while not any(call.startswith("PUT /lfs/") for call in hub.log[calls:]):
        assert process.poll() is None
        deadline.wait(0.1)
    process.kill()
    process.wait()
    assert set(hub.files("org/killed")) == {".gitattributes"}
    hub.stall_uploads = False
    in_process([str(BUNDLED), "org/killed"])
    assert "model.safetensors" in hub.files("org/killed")


def test_a_space_that_cannot_be_published_is_said(hub, in_process, unchecked, monkeypatch, tmp_path, capsys):
    (tmp_path / "README.md").write_text("no header")
    error = refused(capsys, in_process, BUNDLED, "org/spaced", "--space", tmp_path)
    assert "holds no README.md with a Space's header" in error and hub.files("org/spaced") is None
    (tmp_path / "README.md").write_text("---\nsdk: gradio\n---\n")
    create = huggingface_hub.HfApi.create_commit

    def refuse_spaces(self, repo_id, operations, **kwargs):
        hub.refuse_commits = (500, "Internal error") if kwargs.get("repo_type") == "space" else None
        return create(self, repo_id, operations, **kwargs)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", refuse_spaces)
    error = refused(capsys, in_process, BUNDLED, "org/spaced", "--space", tmp_path)
    assert "the model is published, its Space is not: nothing was published: Internal error" in error
    assert "model.safetensors" in hub.files("org/spaced") and hub.files("org/spaced", repo_type="space") is None


def test_a_card_that_cannot_be_pinned_is_said(hub, in_process, unchecked, monkeypatch, capsys):
    create = huggingface_hub.HfApi.create_commit

    def second_fails(self, repo_id, operations, **kwargs):
        hub.refuse_commits = (500, "Internal error") if "Pin" in kwargs["commit_message"] else None
        return create(self, repo_id, operations, **kwargs)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", second_fails)
    error = refused(capsys, in_process, BUNDLED, "org/unpinned")
    assert "published, but the card's snippets name main instead of the commit: Internal error" in error
    assert "model.safetensors" in hub.files("org/unpinned")
