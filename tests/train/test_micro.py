"""The micro recipe's options: changes on the command line, stages kept and reused, where embeddings start."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from vift_hub.join import CHAT_TEMPLATE
from vift_microworld import build_processor
from vift_train import micro, micro_command, phase0

TINY = """
phase0.tower.steps=2 phase0.tower.batch_size=4 phase0.language_model.steps=[2,1] phase0.language_model.conversations=40
phase0.language_model.batch_size=4 phase0.language_model.config.num_hidden_layers=2 stage1.rows=8
stage1.per_device_train_batch_size=4 stage2.caption_rows=8 stage2.text_rows=8 stage2.per_device_train_batch_size=4
fusion.fusion_layers=0:1
""".split()


def run(output, *arguments, changes=()):
    micro_command.main(["--output", str(output), *map(str, arguments), "--set", *TINY, *changes])
    return load_file(output / "model.safetensors")


def test_a_token_of_several_words_starts_as_the_scaled_sum_of_its_words():
    torch.manual_seed(0)
    vocabulary = build_processor(CHAT_TEMPLATE).tokenizer.get_vocab()
    weight = torch.randn(len(vocabulary), 16)
    before = weight.clone()
    phase0.start_from_words(weight, vocabulary)
    row = {token: weight[index] for token, index in vocabulary.items()}
    torch.testing.assert_close(row["red 7"], (row["red"] + row["7"]) / 2**0.5)
    # "top" and "left" are no tokens that all places share: what they add is the same in every place with that word
    torch.testing.assert_close(row["top left"] - row["top right"], row["bottom left"] - row["bottom right"])
    torch.testing.assert_close(row["top left red 7"] - row["top left"] * (2 / 4) ** 0.5, (row["red"] + row["7"]) / 2)
    one_word = [index for token, index in vocabulary.items() if len(token.split()) <= 1]
    assert torch.equal(weight[one_word], before[one_word])


def test_changes_reach_the_recipe_and_numbers_are_numbers():
    recipe = micro.load_recipe(changes=["stage2.learning_rate=1e-3", "phase0.tower.config.image_size=96"])
    assert recipe["stage2"]["learning_rate"] == 1e-3 and recipe["phase0"]["tower"]["config"]["image_size"] == 96
    recipe = micro.load_recipe(changes=["stage1.queries=[web, asking]", "stage2.train_layers=5:8"])
    assert recipe["stage1"]["queries"] == ["web", "asking"] and recipe["stage2"]["train_layers"] == "5:8"


@pytest.mark.parametrize(
    "change",
    [
        "stage3.rows=2",
        "stage1.rows",
        "stage1=2",
        "stage1.rows.more=2",
        "stage1.queries=[web",
    ],
)
def test_a_change_that_fits_nothing_ends_with_status_2(change, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        micro_command.main(["--output", str(tmp_path), "--set", change])
    assert ended.value.code == 2
    assert change in capsys.readouterr().err.strip().splitlines()[-1]


def test_cycles_of_the_text_llm_have_a_rate_each():
    with pytest.raises(ValueError, match=r"lists of equal length, one value per cycle, not 5 and \[0.004, 0.002\]"):
        micro.load_recipe(changes=["phase0.language_model.steps=5"])
    with pytest.raises(ValueError, match=r"not \[5\] and \[0.004, 0.002\]"):
        micro.load_recipe(changes=["phase0.language_model.steps=[5]"])


def test_a_recipe_folder_without_all_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match="lacks phase0.yaml"):
        micro.load_recipe(tmp_path)


def test_without_output_it_ends_after_the_last_stage_that_is_kept(tmp_path, capsys):
    parts = ("--phase0", str(tmp_path / "parts"))
    micro_command.main([*parts, "--start", str(tmp_path / "start"), "--set", *TINY])
    assert (tmp_path / "start" / "processor_config.json").is_file() and not (tmp_path / "stage1").exists()
    before = load_file(tmp_path / "start" / "model.safetensors")
    micro_command.main([*parts, "--stage1", str(tmp_path / "stage1"), "--set", *TINY])
    after = load_file(tmp_path / "stage1" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("multi_modal_projector" in name for name in changed)
    with pytest.raises(SystemExit) as ended:
        micro_command.main(["--set", "stage1.rows=8"])
    assert ended.value.code == 2 and "name --output" in capsys.readouterr().err


def test_a_save_that_stops_is_not_taken_for_a_model_and_nothing_is_replaced_unasked(tmp_path, monkeypatch, capsys):
    run(tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()

    def ended_with(status, message, *arguments):
        with pytest.raises(SystemExit) as ended:
            micro_command.main(["--output", str(tmp_path / "out"), "--seed", "1", *arguments, "--set", *TINY])
        assert ended.value.code == status and message in capsys.readouterr().err.splitlines()[-1]
        assert (tmp_path / "out" / "model.safetensors").read_bytes() == before

    again = ("--phase0", str(tmp_path / "parts"), "--overwrite_output_dir")
    ended_with(2, "holds a model: name a new folder, or say --overwrite-output-dir")
    script = "import sys, time; from vift_hub.output import lock; held = lock(sys.argv[1]); print(1); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-uc", script, str(tmp_path / "out")], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline()
        ended_with(2, "another run is writing there", *again)
    finally:
        other.kill()
        other.wait()

    def stop(error):
        def save(self, folder, **kwargs):
            raise error

        return save

    with monkeypatch.context() as patched:
        patched.setattr(micro.VIFTForConditionalGeneration, "save_pretrained", stop(OSError(28, "No space left")))
        ended_with(2, f"output_dir={tmp_path / 'out'} can't be written", *again)
        patched.setattr(micro.VIFTForConditionalGeneration, "save_pretrained", stop(KeyboardInterrupt()))
        ended_with(130, "vift micro: stopped", *again)
    assert not list(tmp_path.glob("**/.saving"))
    (tmp_path / "parts" / "tower" / "model.safetensors").unlink()  # killed before its last file was there
    assert not micro.is_kept(tmp_path / "parts" / "tower") and micro.is_kept(tmp_path / "parts" / "language_model")
    micro_command.main(["--output", str(tmp_path / "out"), "--seed", "1", *again, "--set", *TINY])
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != before


def test_kept_stages_are_reused_and_give_the_same_model(tmp_path):
    kept = ("--phase0", tmp_path / "parts", "--stage1", tmp_path / "stage1")
    first = run(tmp_path / "first", *kept)
    assert (tmp_path / "parts" / "tower" / "config.json").is_file()
    # with other settings of what is reused: they must not matter
    again = run(tmp_path / "again", *kept, changes=["phase0.tower.steps=3", "stage1.learning_rate=1.0"])
    other = run(tmp_path / "other", *kept[:2], changes=["stage1.learning_rate=1.0"])

    def distance(model):
        return max(float((first[name] - model[name]).abs().max()) for name in first)

    # weights are stored in bf16, where one step above 1 is 0.0078, and Adam enlarges rounding
    assert distance(again) < 0.02 < 0.1 < distance(other)
