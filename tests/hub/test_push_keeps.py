"""What `vift card` and people wrote survives `vift push`, in the source and in the repository that is updated."""

import os
import re
import shutil
import signal
import tempfile
import threading
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

from tests.hub.test_push import refused
from tests.hub.user import BUNDLED
from tests.imports import PYPROJECT, ROOT
from vift_hub import card, join, original, stage

INDEX = [{"name": "m", "results": [{"task": {"type": "t"}, "dataset": {"type": "d", "name": "d"},
                                    "metrics": [{"type": "acc", "value": 0.5}]}]}]  # fmt: skip
SCORES = yaml.safe_dump([{"dataset": {"id": "org/world", "task_id": "fused"}, "value": 34.5}])


def readme(text, **metadata):
    return f"---\n{yaml.safe_dump(metadata)}---\n\n{text}\n"


def parts(file: bytes):
    _, header, text = file.decode().split("---\n", 2)
    return yaml.safe_load(header), text


@pytest.fixture
def source(tmp_path):
    """The bundled model, after `vift card` and a person."""
    source = tmp_path / "source"
    shutil.copytree(BUNDLED, source)
    text = readme("# Ours\n\nwritten by hand", **{"model-index": INDEX, "license": "mit", "tags": ["digits"]})
    (source / "README.md").write_text(text)
    (source / ".eval_results").mkdir()
    (source / ".eval_results" / "world.yaml").write_text(SCORES)
    return source


def test_scores_and_hand_written_text_of_the_source_are_published(hub, in_process, unchecked, source, capsys):
    in_process([str(source), "org/kept"])
    data, text = parts(hub.files("org/kept")["README.md"])
    assert data["model-index"] == INDEX and data["license"] == "mit" and {"digits", "vift"} <= set(data["tags"])
    assert text.strip() == "# Ours\n\nwritten by hand"
    assert hub.files("org/kept")[".eval_results/world.yaml"].decode() == SCORES
    out = capsys.readouterr().out
    assert f"{source}/README.md is kept whole, a person wrote it" in out
    assert "not published: limits.md, training_data.md" in out
    (source / "README.md").write_text(readme("\n\n".join(["before", *card.MARKS, "after"]), **{"model-index": INDEX}))
    in_process([str(source), "org/marked"])
    text = parts(hub.files("org/marked")["README.md"])[1]
    assert re.fullmatch(r"before\n.*## Quick start.*\nafter", text.strip(), re.DOTALL)


def test_a_card_with_a_title_only_is_filled_in(hub, in_process, unchecked, source):
    """Which is what `vift card` writes where there is no card."""
    (source / "README.md").write_text(readme("# org/m", **{"model-index": INDEX}))
    in_process([str(source), "org/title"])
    data, text = parts(hub.files("org/title")["README.md"])
    assert data["model-index"] == INDEX and "## Quick start" in text and "# org/m\n" not in text


def test_an_update_keeps_the_repositorys_text_scores_and_foreign_files(hub, in_process, unchecked, source, capsys):
    result = INDEX[0]["results"][0]
    other = [INDEX[0] | {"results": [result | {"dataset": {"type": "other", "name": "o"}}, result | {"metrics": []}]},
             {"name": "n", "results": []}]  # fmt: skip
    earlier = result | {"dataset": {"type": "e", "name": "earlier (no fusion; lmms-eval 0.7.3)"}}
    other[0]["results"].append(earlier)  # by `vift card`, of the weights that are replaced
    foreign = {"handler.py": b"", "tools/old_vift.py": b"", "training_args.bin": b"", "onnx/model.safetensors": b"x",
               "adapter.safetensors": b"x", "extra.jinja": b"", ".eval_results/old.yaml": b"",
               "notes/custom_generate/old_vift.py": b""}  # fmt: skip
    ours = {"old_vift.py": b"", "custom_generate/old_vift.py": b"", "model-00001-of-00002.safetensors": b"x"}
    theirs = readme("# Theirs\n\nnews", **{"model-index": other, "datasets": ["org/world"], "license": "cc0-1.0"})
    hub.put("org/updated", {"README.md": theirs.encode(), **foreign, **ours})
    calls = len(hub.log)
    in_process([str(source), "org/updated", "--update", "--dry-run"])
    out = capsys.readouterr().out
    assert set(re.findall(r"deletes +(\S+)", out)) == set(ours)
    assert "left out, a score of other weights: earlier (no fusion; lmms-eval 0.7.3)" in out
    assert ".eval_results/old.yaml of org/updated stays: delete it if other weights gave that score" in out
    assert re.search(r"\d  README.md \(replaces\)\n", out) and re.search(r"\d  config.json\n", out)
    assert all(call.split()[0] in ("GET", "HEAD") for call in hub.log[calls:])
    for _ in range(2):  # and a second update adds nothing
        in_process([str(source), "org/updated", "--update"])
        files = hub.files("org/updated")
        assert set(foreign) <= set(files) and not set(ours) & set(files)
        data, text = parts(files["README.md"])
        of_name = {model["name"]: model["results"] for model in data["model-index"]}
        assert of_name.keys() == {"m", "n"} and len(of_name["m"]) == 2
        assert result in of_name["m"] and other[0]["results"][0] in of_name["m"], (
            "a newer score of one question counts"
        )
        assert data["datasets"] == ["org/world"] and data["license"] == "cc0-1.0"
        assert text.strip() == "# Theirs\n\nnews"
        out = capsys.readouterr().out
        assert "README.md of org/updated is kept whole, a person wrote it" in out
        assert f"{source}/README.md: left out, because README.md of org/updated says otherwise: license, text" in out


def test_what_people_write_around_the_published_card_is_kept_and_what_is_in_it_renewed(hub, in_process, unchecked):
    in_process([str(BUNDLED), "org/edited"])
    first = hub.files("org/edited")
    around = first["README.md"].replace(b"license: apache-2.0", b"license: mit\nlanguage: de")
    around = around.replace(b"## Limits\n", b"## Limits\n\n- an old limit\n") + b"\n## News\n\nafter it\n"
    hub.put("org/edited", first | {"README.md": around.replace(b"\n", b"\r\n")})
    in_process([str(BUNDLED), "org/edited", "--update"])
    text = hub.files("org/edited")["README.md"].decode()
    data = parts(text.encode())[0]
    assert text.strip().endswith("## News\n\nafter it") and text.count("## Quick start") == 1
    assert "an old limit" not in text and (data["license"], data["language"]) == ("mit", "de")
    revisions = [re.search(r'revision = .*"(\w{40})"', one)[1] for one in (text, first["README.md"].decode())]
    assert revisions[0] != revisions[1], "the snippets are pinned anew"


def test_what_people_set_in_a_spaces_header_is_kept(hub, in_process, unchecked, tmp_path, capsys):
    (tmp_path / "README.md").write_text(readme("ours", sdk="gradio", title="t"))
    in_process([str(BUNDLED), "org/page", "--space", str(tmp_path)])
    theirs = readme("theirs", sdk="gradio", title="t", models=["org/page"]).encode()
    hub.repos["space", "org/page"].commit("main", {"README.md": theirs, "kept.py": b"x"})
    in_process([str(BUNDLED), "org/page", "--update", "--space", str(tmp_path), "--dry-run"])
    assert "README.md (Space) (replaces)" in capsys.readouterr().out
    in_process([str(BUNDLED), "org/page", "--update", "--space", str(tmp_path)])
    files = hub.files("org/page", repo_type="space")
    data, text = parts(files["README.md"])
    assert files["kept.py"] == b"x" and data == {"sdk": "gradio", "title": "t", "models": ["org/page"]}
    assert text.strip() == "ours"


def test_a_trainers_card_is_replaced_and_a_broken_one_refused(hub, in_process, unchecked, source, tmp_path, capsys):
    card.training_card("org/trained", "stage 2", ["digits"]).save(source / "README.md")
    in_process([str(source), "org/trained"])
    data, text = parts(hub.files("org/trained")["README.md"])
    assert "Trained by" not in text and "digits" in data["tags"]
    for broken in ("---\ntags: [a\n---\nhello\n", "---\n- a\n---\n", readme("", **{"model-index": [{"name": "m"}]})):
        (source / "README.md").write_text(broken)
        assert f"{source}/README.md is no Markdown of the Hub's format" in refused(
            capsys, in_process, source, "org/broken-card"
        )
    hub.put("org/broken-card", {"README.md": b"\xff"})
    shutil.copy(BUNDLED / "limits.md", source / "README.md")
    error = refused(capsys, in_process, source, "org/broken-card", "--update")
    assert "README.md of org/broken-card is no Markdown of the Hub's format" in error
    command = (source, "org/broken-card", "--limits", tmp_path / "limits.md")
    (tmp_path / "limits.md").write_bytes(b"\xff")
    assert f"limits={tmp_path}/limits.md is no Markdown" in refused(capsys, in_process, *command)
    (source / ".eval_results" / "world.yaml").write_text("- value: 3\n")
    assert "world.yaml is not in the Hub's format" in refused(capsys, in_process, source, "org/broken-card")


def test_a_bad_token_or_a_forgotten_update_is_found_before_the_model_is_loaded(
    hub,
    in_process,
    monkeypatch,
    capsys,
):
    monkeypatch.setattr(stage, "load", lambda source: pytest.fail("loaded"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    hub.put("org/there", {"README.md": b"theirs"})
    assert "pass --update" in refused(capsys, in_process, BUNDLED, "org/there")
    assert "no branch" in refused(capsys, in_process, BUNDLED, "org/there", "--update", "--revision", "x")
    for token, words in {"hf_wrong": "does not accept this token", "hf_reader": "no permission to write"}.items():
        monkeypatch.setenv("HF_TOKEN", token)
        assert words in refused(capsys, in_process, BUNDLED, "org/new")
    monkeypatch.delenv("HF_TOKEN")
    assert "no token" in refused(capsys, in_process, BUNDLED, "org/new")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_upload_cleans_up_as_an_interrupted_one(
    hub, in_process, unchecked, tmp_path, monkeypatch, capsys, number
):
    hub.blobs.clear()
    hub.stall_uploads, calls = True, len(hub.log)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def stop():
        while not any(call.startswith("PUT /lfs/") for call in hub.log[calls:]):
            threading.Event().wait(0.05)
        os.kill(os.getpid(), number)

    before = signal.signal(number, signal.SIG_DFL)
    try:
        threading.Thread(target=stop, daemon=True).start()
        error = refused(capsys, in_process, BUNDLED, "org/ended", status=128 + number)
    finally:
        signal.signal(number, before)
    assert "interrupted; nothing was published" in error
    assert hub.files("org/ended") is None and not [*tmp_path.iterdir()]


def test_a_full_disk_while_staging_is_one_line(hub, in_process, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr(stage, "write", full)
    error = refused(capsys, in_process, BUNDLED, "org/full")
    assert "nothing was published: staging in /" in error and "bytes free; TMPDIR" in error
    assert "No space left on device" in error and "model.safetensors" in error and hub.files("org/full") is None


def test_a_training_run_keeps_the_card_of_a_person(tmp_path, monkeypatch):
    new, file = card.training_card("org/run", "stage 2", []), tmp_path / "README.md"
    for text in (readme("by hand", license="mit"), str(new) + "\nby hand\n"):
        file.write_text(text)
        card.save_training_card(new, file)
        assert "by hand" in file.read_text() and file.read_text().count("Quick start") == text.count("Quick start")
    file.write_bytes(b"\xff")
    with pytest.warns(UserWarning, match="README.md is no Markdown of the Hub's format"):
        card.save_training_card(new, file)
    assert file.read_bytes() == b"\xff"
    file.unlink()
    monkeypatch.setattr(card.RepoCard, "load", lambda repo, token: card.read(readme("on the Hub").encode(), repo))
    card.save_training_card(new, file, "org/run")
    assert "on the Hub" in file.read_text() and "pipeline_tag" in file.read_text()


def test_what_push_and_convert_read_beside_their_code_is_in_the_wheel():
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["*"]
    for file in (card.TEMPLATE, join.CHAT_TEMPLATE, original.VICUNA):
        assert file.parent == Path(card.__file__).parent and any(file.match(pattern) for pattern in patterns), file
    assert card.TEMPLATE.resolve() == ROOT / "model_card.md", "the packaged copy is the file on top"
