"""What `vift-card` and people wrote survives `vift-push`, in the source and in the repository that is updated."""

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

from tests.hub.test_push import VIFT_PUSH, in_process, refused, unchecked  # noqa: F401
from tests.hub.user import BUNDLED, environment
from tests.imports import PYPROJECT
from vift_hub import card, convert, join, stage

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
    """The bundled model, after `vift-card` and a person."""
    source = tmp_path / "source"
    shutil.copytree(BUNDLED, source)
    text = readme("# Ours\n\nwritten by hand", **{"model-index": INDEX, "license": "mit", "tags": ["digits"]})
    (source / "README.md").write_text(text)
    (source / ".eval_results").mkdir()
    (source / ".eval_results" / "world.yaml").write_text(SCORES)
    return source


def test_scores_and_hand_written_text_of_the_source_are_published(hub, in_process, unchecked, source, capsys):  # noqa: F811
    in_process([str(source), "org/kept"])
    data, text = parts(hub.files("org/kept")["README.md"])
    assert data["model-index"] == INDEX and data["license"] == "mit" and {"digits", "vift"} <= set(data["tags"])
    assert text.strip().startswith("# Ours\n\nwritten by hand") and "## Quick start" in text
    assert len(re.findall(r"^# \w", re.sub(r"```.*?```", "", text, flags=re.S), re.M)) == 1, "one title"
    assert hub.files("org/kept")[".eval_results/world.yaml"].decode() == SCORES
    assert "not published: limits.md, training_data.md" in capsys.readouterr().out


def test_an_update_keeps_the_repositorys_text_scores_and_foreign_files(hub, in_process, unchecked, source, capsys):  # noqa: F811
    other = [INDEX[0] | {"results": [INDEX[0]["results"][0] | {"dataset": {"type": "other", "name": "o"}}]}]
    foreign = {"handler.py": b"", "tools/old_vift.py": b"", "training_args.bin": b"", "onnx/model.safetensors": b"x",
               "adapter.safetensors": b"x", "extra.jinja": b"", ".eval_results/old.yaml": b""}  # fmt: skip
    ours = {"old_vift.py": b"", "custom_generate/old_vift.py": b"", "model-00001-of-00002.safetensors": b"x"}
    theirs = readme("# Theirs\n\nnews", **{"model-index": other, "datasets": ["org/world"]})
    hub.put("org/updated", {"README.md": theirs.encode(), **foreign, **ours})
    calls = len(hub.log)
    in_process([str(source), "org/updated", "--update", "--dry-run"])
    out = capsys.readouterr().out
    assert set(re.findall(r"deletes +(\S+)", out)) == set(ours)
    assert all(call.split()[0] in ("GET", "HEAD") for call in hub.log[calls:])
    for _ in range(2):  # and a second update adds nothing
        in_process([str(source), "org/updated", "--update"])
        files = hub.files("org/updated")
        assert set(foreign) <= set(files) and not set(ours) & set(files)
        data, text = parts(files["README.md"])
        assert data["model-index"] == [INDEX[0] | {"results": [*other[0]["results"], *INDEX[0]["results"]]}]
        assert data["datasets"] == ["org/world"] and data["license"] == "mit"
        assert [text.count(part) for part in ("news", "written by hand", "## Quick start")] == [1, 1, 1]


def test_what_people_write_around_and_into_the_published_card_is_kept(hub, in_process, unchecked, capsys):  # noqa: F811
    in_process([str(BUNDLED), "org/edited"])
    first = hub.files("org/edited")
    around = first["README.md"] + b"\n## News\n\nafter it\n"
    hub.put("org/edited", first | {"README.md": around.replace(b"\n", b"\r\n")})
    in_process([str(BUNDLED), "org/edited", "--update"])
    text = hub.files("org/edited")["README.md"].decode()
    assert text.strip().endswith("## News\n\nafter it") and text.count("## Quick start") == 1
    revisions = [re.search(r'revision = .*"(\w{40})"', one)[1] for one in (text, first["README.md"].decode())]
    assert revisions[0] != revisions[1], "the snippets are pinned anew"
    inside = text.replace("## Limits\n", "## Limits\n\n- not at night\n")
    hub.put("org/edited", hub.files("org/edited") | {"README.md": inside.encode()})
    in_process([str(BUNDLED), "org/edited", "--update"])
    text = hub.files("org/edited")["README.md"].decode()
    assert "not at night" in text and text.count("## Quick start") == 1
    assert "README.md of org/edited: its generated part was edited by hand" in capsys.readouterr().out


def test_a_trainers_card_is_replaced_and_a_broken_one_refused(hub, in_process, unchecked, source, capsys):  # noqa: F811
    card.training_card("org/trained", "stage 2", ["digits"]).save(source / "README.md")
    in_process([str(source), "org/trained"])
    data, text = parts(hub.files("org/trained")["README.md"])
    assert "Trained by" not in text and "digits" in data["tags"]
    (source / "README.md").write_text("---\ntags: [a\n---\nhello\n")
    error = refused(capsys, in_process, source, "org/broken-card")
    assert f"{source}/README.md: its metadata are no YAML" in error and hub.files("org/broken-card") is None
    (source / "README.md").write_text("hello")
    (source / ".eval_results" / "world.yaml").write_text("- value: 3\n")
    assert "world.yaml is not in the Hub's format" in refused(capsys, in_process, source, "org/broken-card")


def test_a_bad_token_or_a_forgotten_update_is_found_before_the_model_is_loaded(
    hub,
    in_process,  # noqa: F811
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


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_terminated_upload_cleans_up_as_an_interrupted_one(hub, in_process, tmp_path, name):  # noqa: F811
    hub.blobs.clear()
    hub.stall_uploads, calls = True, len(hub.log)
    (tmp_path / "staging").mkdir()
    env = environment(hub, tmp_path, TMPDIR=str(tmp_path / "staging"))
    process = subprocess.Popen([*VIFT_PUSH, str(BUNDLED), "org/ended"], env=env, cwd=tmp_path, stderr=subprocess.PIPE)
    while not any(call.startswith("PUT /lfs/") for call in hub.log[calls:]):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(getattr(signal, name))
    error = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 128 + getattr(signal, name) and "interrupted; nothing was published" in error
    assert hub.files("org/ended") is None and not [*(tmp_path / "staging").glob("tmp*")]


def test_a_full_disk_while_staging_is_one_line(hub, in_process, monkeypatch, capsys):  # noqa: F811
    def full(*args):
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr(stage, "write", full)
    error = refused(capsys, in_process, BUNDLED, "org/full")
    assert "nothing was published: staging in /" in error and "bytes free; TMPDIR" in error
    assert "No space left on device" in error and "model.safetensors" in error and hub.files("org/full") is None


def test_what_push_and_convert_read_beside_their_code_is_in_the_wheel():
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["*"]
    for file in (card.TEMPLATE, join.CHAT_TEMPLATE, convert.VICUNA):
        assert file.parent == Path(card.__file__).parent and any(file.match(pattern) for pattern in patterns), file
