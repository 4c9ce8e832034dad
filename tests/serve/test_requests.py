"""Settings, salts, places and the text run of the plug-in for vLLM: what needs no vLLM."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modeling_vift import VIFTConfig
from studies.benchmarks.asking import OTHERS, SETTINGS
from vift_serve.requests import RequestFusion
from vift_serve.salts import OwnAnswer, salt_request
from vift_serve.text_run import Text, run_texts

IMAGE = 3
SEEDS = itertools.count()
SPANS = ("all", "after_image", "reference")


def fusion(**fields) -> RequestFusion:
    text = {"model_type": "qwen2", "num_hidden_layers": 8}
    return RequestFusion(VIFTConfig(text_config=text, image_token_index=IMAGE, **fields))


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [*SETTINGS.values(), *OTHERS.values()])
def test_settings_are_those_of_generate(settings):
    from modeling_vift.settings_vift import resolve_fusion

    ours, given = fusion(), dict(settings)
    expected = resolve_fusion(ours.config, given.pop("fusion", None), **given)
    assert ours.settings(settings) == expected and ours.settings(settings | {"kv_transfer_params": None}) == expected


def test_json_has_booleans_and_vllm_xargs_has_none():
    ours = fusion()
    for off in (False, 0, "false"):
        assert ours.settings({"fusion": off}) is None
        assert ours.settings({"fusion_norm": off, "fusion": 1}) == ours.settings({})
    assert ours.settings({"fusion_answer": 1}).answer is True
    assert fusion(fusion_enabled=False).settings(None) is None


@pytest.mark.parametrize(
    "arguments, named",
    [
        ({"bata": 1}, "unknown argument 'bata' in vllm_xargs"),
        ({"beta": 7}, r"beta=7 must be a finite number in \[-2.0, 2.0\]"),
        ({"alpha": [0.1, 0.2]}, r"alpha=\[.*\] must be one number: a request is one row"),
        ({"fusion": "nothing"}, "unknown preset fusion='nothing'"),
        ({"fusion": False, "beta": 0.1}, "beta given but fusion is off"),
        ({"fusion_layers": [1, 8]}, "reaches layer 8, but the model has layers 0 to 7"),
        ({"fusion_rule": "independent"}, "fusion_rule='independent' with alpha=1.0 needs a second run"),
        ({"fusion_rule": "additive", "alpha": 0.5}, "fusion_rule='additive' with alpha=0.5 needs a second run"),
        ({"fusion_norm": 2}, "fusion_norm=2 must be True or False"),
    ],
)
def test_a_wrong_request_is_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=named):
        fusion().settings(arguments)


def test_fields_of_another_model_are_fusion_fields():
    other = SimpleNamespace(
        image_token_id=IMAGE,
        vision_start_token_id=4,
        vision_config=SimpleNamespace(),
        get_text_config=lambda: SimpleNamespace(num_hidden_layers=8),
        fusion_beta=0.3,
    )
    ours = RequestFusion(other)
    assert ours.settings({}).beta == 0.3 and ours.fusion_config.image_wrapper_token_ids == [4]
    with pytest.raises(ValueError, match="unknown fusion field 'fusion_bata'"):
        RequestFusion(SimpleNamespace(**vars(other) | {"fusion_bata": 1}))


# --- the prefix cache ---------------------------------------------------------------------------------------------


def test_a_salt_is_of_the_setting_and_of_the_images_where_they_matter():
    ours, one, two = fusion(), [5, IMAGE, IMAGE, 6, 7], [5, IMAGE, IMAGE, 6, IMAGE, IMAGE]
    every = [ours.settings(s) for s in SETTINGS.values() if s != {"fusion": False}]
    every += [ours.settings(s) for s in OTHERS.values()]
    assert len({ours.salt(s, one) for s in every}) == len(set(every))
    assert ours.salt(None, one) is None and ours.salt(every[0], [5, 6]) is None
    for span in SPANS:
        settings = ours.settings({"fusion_span": span})
        assert ours.salt(settings, one) == ours.salt(settings, one + [8])
        assert (ours.salt(settings, one) == ours.salt(settings, two)) == (span == "all")


class StubRequest:
    def __init__(self, request_id, ids, outputs=(), salt=None):
        self.request_id, self.ids, self.num_prompt_tokens, self.cache_salt = request_id, ids, len(ids), salt
        self._block_hasher, self.block_hashes = self.hashes, []
        self.update_block_hashes()
        self.outputs = list(outputs)

    @staticmethod
    def hashes(request, size=4):
        """As vLLM's: the salt in the first block, each hash in the next one."""
        tokens, new = request.ids, list(request.block_hashes)
        for start in range(len(new) * size, len(tokens) - size + 1, size):
            before = new[-1] if new else str(request.cache_salt).encode()
            new.append(before + bytes(tokens[start : start + size]))
        return new[len(request.block_hashes) :]

    def update_block_hashes(self):
        self.block_hashes += self._block_hasher(self)

    def answer(self, *tokens):
        for token in tokens:
            self.ids = [*self.ids, token]
            self.update_block_hashes()
        return self


def salted(name, salt, answer, *outputs, prompt=(1, 2, 3, 4, 5, 6), own=None):
    request = StubRequest(name, list(prompt), salt=own)
    salt_request(request, salt, answer, block_size=4)
    return request.answer(*outputs).block_hashes


def test_prompts_of_one_salt_are_shared_and_answers_that_are_not_fused_are_not():
    one, same, other = (salted(*which, False, 7, 8, 9, 9, 9, 9) for which in (("a", "s"), ("b", "s"), ("c", "t")))
    assert one[0] == same[0] and not set(one[1:]) & set(same) and not set(one) & set(other) and len(one) == 3
    fused = salted("a", "s", True, 7, 8, 9, 9, 9, 9)
    assert fused == salted("b", "s", True, prompt=(1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9))
    assert salted("a", "s", True, own="client's")[0] != fused[0]
    assert set(one).isdisjoint(StubRequest("d", [1, 2, 3, 4, 5, 6]).block_hashes)


def test_without_a_prefix_cache_nothing_is_hashed():
    request = SimpleNamespace(cache_salt=None, _block_hasher=None, block_hashes=[])
    salt_request(request, "s", False, 4)
    assert (
        request.block_hashes == []
        and OwnAnswer(lambda r: [], 4)(SimpleNamespace(block_hashes=[], num_prompt_tokens=9, request_id="a")) == []
    )


# --- places -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("skip_first", [False, True])
def test_places_are_those_of_generate_whatever_the_chunks(span, skip_first):
    ours, prompt = fusion(image_wrapper_token_ids=[9]), [5, 9, IMAGE, IMAGE, IMAGE, 9, 6, 7, 8, IMAGE, 4, 4]
    settings = ours.settings({"fusion_span": span, "fusion_skip_first": skip_first})
    request = ours.request(settings, prompt, [])
    assert request.text == [5, 6, 7, 8, 4, 4]
    expected = {"all": [0, 6, 7, 8, 10, 11], "after_image": [-1, -1, -1, -1, 10, 11], "reference": range(6, 12)}
    pairs = [(i, p) for i, p in enumerate(expected[span]) if p >= 0 and not (skip_first and i == 0)]
    for size in (1, 5, 12):
        chunks = [request.places(start, start + size) for start in range(0, 12, size)]
        assert [(int(s), int(p)) for source, place in chunks for s, p in zip(source, place)] == pairs
    assert len(request.places(12, 14)[0]) == 0


def test_an_answer_is_written_onto_itself():
    ours, prompt = fusion(), [5, IMAGE, IMAGE, 6, 7]
    request = ours.request(ours.settings({"fusion_answer": True}), prompt, outputs := [])
    outputs += [11, 12]
    source, position = request.places(4, 7)
    assert source.tolist() == [2, 3, 4] and position.tolist() == [4, 5, 6]
    assert request.ids(1, 5) == [6, 7, 11, 12]
    request.computed = 7
    assert not request.is_done


def test_rows_without_an_image_or_with_fusion_off_are_untouched():
    ours = fusion()
    assert ours.request(ours.settings({}), [5, 6], []) is None
    assert ours.request(None, [5, IMAGE, 6], []) is None


# --- the text run -------------------------------------------------------------------------------------------------


class StubAttention:
    """vLLM's `Attention` as far as a layer calls it; its own paged forward must never run."""

    num_heads, num_kv_heads, head_size, impl = 4, 2, 8, SimpleNamespace(scale=0.3)

    def __call__(self, query, key, value):
        return self.forward(query, key, value)

    def forward(self, query, key, value):
        raise AssertionError("the paged attention ran")


class StubLayer:
    """(positions, hidden_states, residual) -> the same two, as vLLM's layers; positions matter."""

    def __init__(self, attention):
        make = torch.Generator().manual_seed(next(SEEDS))
        self.project = torch.randn(32, 32 + 16 + 16, generator=make, dtype=torch.float64) / 6
        self.attention = attention

    def forward(self, positions, hidden_states, residual):
        residual = hidden_states if residual is None else hidden_states + residual
        place = positions if positions.ndim == 1 else positions[0]
        x = torch.tanh(residual) + 0.1 * torch.sin(place[:, None].double())
        query, key, value = (x @ self.project).split([32, 16, 16], dim=1)
        return self.attention(query, key, value), residual


@pytest.fixture
def decoder():
    attentions = [StubAttention() for _ in range(4)]
    return [StubLayer(one) for one in attentions], attentions


def alone(decoder, embeddings):
    """layer -> (T, D): one text, layer by layer, with attention written out."""
    layers, attentions = decoder
    hidden, residual, states = embeddings, None, {}
    for index, layer in enumerate(layers):
        states[index] = hidden if residual is None else hidden + residual

        def attend(query, key, value, own=attentions[index]):
            q, k, v = (one.view(len(query), -1, own.head_size) for one in (query, key, value))
            k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
            scores = torch.einsum("ihd,jhd->hij", q, k) * own.impl.scale
            scores = scores.masked_fill(torch.ones(len(q), len(q)).triu(1).bool(), -torch.inf)
            return torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(len(q), -1)

        attentions[index].forward = attend
        hidden, residual = layer.forward(torch.arange(len(embeddings)), hidden, residual)
        del attentions[index].forward
    return states


@pytest.mark.parametrize("mrope", [False, True])
def test_texts_of_one_run_are_as_alone(decoder, mrope):
    texts = [torch.randn(n, 32, dtype=torch.float64) for n in (5, 3, 9, 1)]
    wanted = [(1, 3), (3,), (0, 2), (0,)]
    states = run_texts(
        *decoder, [Text(len(t), layers) for t, layers in zip(texts, wanted)], torch.cat(texts), mrope=mrope
    )
    for index, (text, layers) in enumerate(zip(texts, wanted)):
        start = sum(map(len, texts[:index]))
        for layer in layers:
            torch.testing.assert_close(states[layer][start : start + len(text)], alone(decoder, text)[layer])
    assert len(states[3]) == 8 and len(states[2]) == 17  # shorter runs have dropped off


def test_texts_go_on_as_if_whole(decoder):
    texts = [torch.randn(n, 32, dtype=torch.float64) for n in (9, 6)]
    caches, seen = [{}, {}], [[], []]
    for first, second in ((4, 1), (1, 0), (3, 3), (1, 2)):
        part, embeddings, places = [], [], []
        for i, count in enumerate((first, second)):
            if count:
                done = sum(len(s) for s in seen[i])
                part.append(Text(count, (3,), done, caches[i], keep=True))
                embeddings.append(texts[i][done : done + count])
                places.append(i)
        states = run_texts(*decoder, part, torch.cat(embeddings))[3].split([text.length for text in part])
        for i, own in zip(places, states):
            seen[i].append(own)
    for i in (0, 1):
        torch.testing.assert_close(torch.cat(seen[i]), alone(decoder, texts[i])[3])
    assert all("forward" not in vars(attention) for attention in decoder[1])
    assert np.array_equal(sorted(caches[0]), [0, 1, 2])
