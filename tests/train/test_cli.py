"""The training page's path: the micro-world as files, both stages by `vift train`, questions to the result."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def first_steps() -> str:
    """The commands of the page's tutorial, all of them."""
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    section = re.search(r"^## Your own data, first steps\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)[1]
    return "\n".join(re.findall(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL))


@pytest.mark.slow
@pytest.mark.skipif("VIFT_TUTORIAL" not in os.environ, reason="two minutes of training: set VIFT_TUTORIAL=1")
def test_the_pages_first_steps_run_as_pasted_and_the_model_gets_better(tmp_path):
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    ran = subprocess.run(
        ["bash", "-e", "-c", first_steps()], cwd=tmp_path, capture_output=True, text=True, timeout=3600
    )
    assert ran.returncode == 0, f"{ran.stdout[-2000:]}\n{ran.stderr[-3000:]}"
    right = {name: list(map(int, re.findall(rf"^{name} +(\d+) of 150 right", ran.stdout, re.MULTILINE)))
             for name in ("fused", "blind")}  # fmt: skip
    before, after, at_the_end = right["fused"]
    assert after >= before + 15 and at_the_end >= before + 15, right  # the page says how many it was
    assert after >= max(right["blind"]) + 10, right
    answers = tmp_path / "runs" / "stage1" / "answers"
    assert len(list(answers.glob("*.md"))) == 5 and len(list(answers.glob("*.png"))) == 5
    assert "how many digits are there ?" in max(answers.glob("*.md")).read_text(encoding="utf-8")


@pytest.mark.slow
def test_lora_from_the_command_line_trains_in_float32(tmp_path, monkeypatch):
    from safetensors.torch import load_file

    from vift_train.__main__ import main

    monkeypatch.chdir(ROOT)
    data = tmp_path / "rows.jsonl"
    data.write_text('{"instruction": "describe the picture .", "output": "red 7 ."}\n' * 8)
    options = [
        "--stage",
        "2",
        "--instructions",
        str(data),
        "--train_connector",
        "false",
        "--output_dir",
        str(tmp_path),
    ]
    options += ["--use_peft", "--lora_r", "4", "--learning_rate", "1e-3", "--max_steps", "1", "--bf16", "false"]
    main(["--model", "checkpoints/vift-micro", *options])
    adapter = load_file(tmp_path / "adapter_model.safetensors")
    assert {str(weight.dtype) for weight in adapter.values()} == {"torch.float32"}
    assert all("language_model.layers." in name and "lora_" in name for name in adapter)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--eval_captions", "x"], "eval_captions or eval_instructions given, but eval_strategy='no'"),
        ([], "captions and instructions are both empty"),
        (["--captions", "nowhere.jsonl"], "source='nowhere.jsonl': there is no such file"),
        (["--lerning_rate", "1"], "no such option: --lerning_rate 1"),
        (["--learning_rate", "fast"], "argument --learning_rate"),
        (["--report_to", "no_such_tracker"], "report_to=no_such_tracker isn't installed or known"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_a_bad_run_is_one_line_and_status_2(arguments, message, tmp_path, capsys):
    from vift_train.__main__ import main

    with pytest.raises(SystemExit) as stopped:
        main(["--model", "checkpoints/vift-micro", "--output_dir", str(tmp_path), *arguments])
    shown = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and message in shown[-1] and "bf16" not in shown[-1] and len(shown) == 1


def test_a_wrong_model_and_ctrl_c_are_one_line(tmp_path, capsys, monkeypatch):
    from vift_train import __main__ as command
    from vift_train import launch

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "describe", "output": "red 7 ."}\n' * 8)
    arguments = ["--instructions", str(rows), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        command.main(["--model", str(tmp_path / "nothing"), *arguments])
    assert stopped.value.code == 2 and f"model={tmp_path / 'nothing'}: " in capsys.readouterr().err.splitlines()[-1]

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "load_model", interrupted)
    with pytest.raises(SystemExit) as stopped:
        command.main(["--model", str(ROOT / "checkpoints" / "vift-micro"), *arguments])
    assert stopped.value.code == 130 and "--resume-from-checkpoint true" in capsys.readouterr().err
