"""`vift card`: numbers go from results files into `.eval_results` and `model-index`, and from nowhere else."""

import copy
import json

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from tests.status import status_of
from vift_eval.lmms.results import main


def results(weights, task="pope", dataset="lmms-lab-encoder/POPE", value=0.875):
    fusion = {
        "alpha": 1.0,
        "beta": 0.1,
        "fusion_layers": [2, 3],
        "fusion_rule": "cascade",
        "fusion_span": "all",
        "fusion_norm": False,
        "fusion_answer": False,
    }
    return {
        "results": {
            task: {"alias": task, "f1,none": 0.5, "accuracy,none": value, "accuracy_stderr,none": 0.01},
            "group": {"alias": "group"},
        },
        "configs": {task: {"dataset_path": dataset, "test_split": "test", "metric_list": [{"metric": "accuracy"}]}},
        "n-samples": {task: {"original": 9, "effective": 9}},
        "date": "20261125_105003",
        "vift": {
            "model": {"weights_sha256": weights},
            "packages": {"lmms-eval": "0.7.3"},
            "tasks": {task: {"requests": 9, "failed": [], "settings": [{"fusion": fusion}]}},
        },
    }


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    card = "---\nlicense: apache-2.0\ntags:\n- vift\n---\n\n# A model\n\ntext\n"
    (tmp_path / "model" / "README.md").write_text(card)
    return tmp_path


@pytest.fixture
def weights(folder):
    from vift_eval.files import weights_sha256

    return weights_sha256(str(folder / "model"))


def run(folder, *results):
    paths = []
    for number, one in enumerate(results):
        paths.append(folder / f"{number}_results.json")
        paths[-1].write_text(json.dumps(one))
    return status_of(main, ["--results", *paths, "--model", folder / "model", "--repo", "me/vift"])


def test_every_number_comes_from_the_results_file(folder, weights, capsys):
    micro = results(weights, "vift_micro_visual", "json", 0.4)
    assert run(folder, results(weights), micro) == 0, capsys.readouterr().err
    (path,) = (folder / "model" / ".eval_results").iterdir()  # the micro-world is no data set on the Hub
    (entry,) = parse_eval_result_entries(yaml.safe_load(path.read_text()))
    assert (path.name, entry.dataset_id, entry.task_id, entry.value) == (
        "pope.yaml",
        "lmms-lab-encoder/POPE",
        "pope",
        0.875,
    )
    assert entry.date == "2026-11-25" and "beta 0.1, layers 2:4" in entry.notes and "0.7.3" in entry.notes
    card = ModelCard.load(folder / "model" / "README.md")
    assert card.data.license == "apache-2.0" and card.data.tags == ["vift"] and "text" in card.text
    found = {(one.dataset_name.split(" ")[0], one.metric_type): one.metric_value for one in card.data.eval_results}
    assert found == {
        ("pope", "accuracy"): 0.875,
        ("pope", "f1"): 0.5,
        ("vift_micro_visual", "accuracy"): 0.4,
        ("vift_micro_visual", "f1"): 0.5,
    }
    # again, with another number: replaced, not added
    assert run(folder, results(weights, value=0.9)) == 0
    card = ModelCard.load(folder / "model" / "README.md")
    assert [one.metric_value for one in card.data.eval_results] == [0.9, 0.5]


def test_scores_of_other_origin_stay_and_two_tasks_on_one_data_set_keep_their_names(folder, weights, capsys):
    theirs = {"task": {"type": "t"}, "dataset": {"type": "d", "name": "d"}, "metrics": [{"type": "acc", "value": 0.5}]}
    index = yaml.safe_dump({"license": "mit", "model-index": [{"name": "vift", "results": [theirs]}]})
    readme = folder / "model" / "README.md"
    readme.write_text(f"---\n{index}---\n\ntext\n")
    assert run(folder, results(weights), results(weights, "pope_adv")) == 0, capsys.readouterr().err
    (model,) = yaml.safe_load(readme.read_text().split("---\n")[1])["model-index"]
    names = {one["dataset"]["name"].split(" ")[0]: one for one in model["results"]}
    assert names.keys() == {"d", "pope", "pope_adv"} and names["d"] == theirs
    readme.write_bytes(b"---\ntags: [a\n---\n")
    assert (
        run(folder, results(weights)) == 2
        and "README.md is no Markdown of the Hub's format" in capsys.readouterr().err
    )


def test_what_is_no_result_is_refused(folder, weights, capsys):
    part, other, twice = (copy.deepcopy(results(weights)) for _ in range(3))
    part["n-samples"]["pope"]["effective"] = 3
    other["vift"]["model"]["weights_sha256"] = "0" * 64
    del twice["vift"]
    for wrong, word in ((part, "3 of 9"), (other, "000000000000"), (twice, "no results file")):
        assert run(folder, wrong) == 2
        error = capsys.readouterr().err
        assert word in error and error.count("\n") == 1
    assert run(folder, results(weights), results(weights)) == 2
    assert "more than one file" in capsys.readouterr().err
    assert not (folder / "model" / ".eval_results").exists()
