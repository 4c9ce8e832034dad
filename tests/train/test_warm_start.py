"""The connector's warm start: image tokens come to look like the words of captions; nothing else moves."""

import pytest
import torch
from PIL import Image

from tests.train.test_trainer import processor, tiny_model  # noqa: F401
from vift_microworld import web_captions
from vift_train.warm_start import caption_words, main, project, read_pictures, warm_start


@pytest.fixture(scope="module")
def rows():
    return web_captions(160, seed=1)


def captions_of(rows) -> list[str]:
    return [row[-1]["content"][-1]["text"] for row in rows["messages"]]


def test_image_tokens_come_to_look_like_words_of_the_captions(processor, rows, capsys):  # noqa: F811
    model = tiny_model(processor)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    losses = warm_start(
        model, processor, [row[0] for row in rows["images"]], captions_of(rows), epochs=6, batch_size=16
    )
    assert losses[-1] < 0.8 * losses[0]
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved and all("multi_modal_projector" in name for name in moved)
    table = model.get_input_embeddings().weight
    tokens = caption_words(processor.tokenizer, captions_of(rows))[0]
    features = read_pictures(model, processor, [row[0] for row in rows["images"]])
    found = (project(model.model.multi_modal_projector, features.float()) - table.mean(0)).norm(dim=-1).mean()
    assert float(found) == pytest.approx(float((table[tokens] - table.mean(0)).norm(dim=-1).mean()), rel=0.05)
    assert "epoch 6 of 6" in capsys.readouterr().out


def test_rare_words_weigh_more_and_the_rarest_nothing(processor):  # noqa: F811
    captions = ["image left", "image empty"] * 8 + ["colors left"] * 6 + ["yellow"]
    tokens, weights = caption_words(processor.tokenizer, captions)
    known = [processor.tokenizer.decode([token]).strip() for token in tokens.tolist()]
    assert "yellow" not in known and {"image", "colors", "left", "empty"} == set(known)
    assert torch.allclose(weights[:-1].sum(1), torch.ones(22)) and float(weights[-1].sum()) == 0.0
    of = dict(zip(known, weights[16].tolist()))
    assert of["colors"] > of["left"] > 0 == of["image"]


def test_mistakes_are_told(processor, tmp_path, capsys):  # noqa: F811
    model, picture = tiny_model(processor), Image.new("RGB", (48, 48))
    with pytest.raises(ValueError, match="2 pictures, 1 captions"):
        warm_start(model, processor, [picture] * 2, ["red"])
    with pytest.raises(ValueError, match="no word stands in 5 of the 1 captions"):
        warm_start(model, processor, [picture], ["red"])
    with pytest.raises(SystemExit):
        main(["--model", "x", "--captions", "x", "--output", str(tmp_path / "out"), "--rows", "0"])
    assert "--rows=0 must be at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["--model", "nowhere", "--captions", str(tmp_path / "no.jsonl"), "--output", str(tmp_path / "out")])
    assert stopped.value.code == 2 and "no.jsonl" in capsys.readouterr().err
