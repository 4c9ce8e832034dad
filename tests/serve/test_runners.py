"""The adapters of vLLM's two model runners, the scheduler and the refusals, with stubs in the runners' places."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modeling_vift import VIFTConfig

pytest.importorskip("vllm", reason="vLLM is not installed: docs/serving.md, 'Install'")

from vllm import SamplingParams  # noqa: E402
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality  # noqa: E402

from vift_serve import rows  # noqa: E402
from vift_serve.rows import FusionRows, rows_class, rows_of, validate  # noqa: E402

IMAGE = 3
PROMPT = [5, IMAGE, IMAGE, 6, 7]


def config(**fields) -> VIFTConfig:
    text = {"model_type": "qwen2", "num_hidden_layers": 8}
    return VIFTConfig(text_config=text, image_token_index=IMAGE, **fields)


def engine(**fields):
    return SimpleNamespace(model_config=SimpleNamespace(hf_config=config(**fields)), instance_id="1")


def params(**settings) -> SamplingParams:
    return SamplingParams(extra_args=settings or None)


# --- the first runner ---------------------------------------------------------------------------------------------


def forward(monkeypatch, starts, lengths):
    metadata = SimpleNamespace(query_start_loc=torch.tensor(starts), seq_lens=torch.tensor(lengths))
    context = SimpleNamespace(attn_metadata={"layer": metadata})
    monkeypatch.setattr(rows, "get_forward_context", lambda: context)


def update(added=(), removed=(), moved=()):
    return BatchUpdate(batch_size=0, added=added, removed=removed, moved=moved)


def test_rows_follow_what_comes_goes_and_moves(monkeypatch):
    own = FusionRows(engine(), "cpu", False)
    fused, off, text = (0, params(), PROMPT, []), (1, params(fusion=False), PROMPT, []), (2, params(), [5, 6], [])
    own.update_state(update(added=[fused, off, text, (3, params(beta=0.5), PROMPT, [])]))
    forward(monkeypatch, [0, 5, 10, 12, 15], [5, 5, 2, 3])
    assert [(r.settings.beta, *rest) for r, *rest in own.batch()] == [(0.1, 0, 0, 5), (0.5, 12, 0, 3)]
    own.update_state(update(removed=[1], moved=[(3, 1, MoveDirectionality.UNIDIRECTIONAL)]))
    own.update_state(update(moved=[(0, 2, MoveDirectionality.SWAP)]))
    own.update_state(None)
    forward(monkeypatch, [0, 1, 3, 4], [3, 5, 6])
    assert [(r.settings.beta, *rest) for r, *rest in own.batch()] == [(0.5, 1, 3, 2), (0.1, 3, 5, 1)]
    own.rows[2].computed = 5  # its prompt is through
    assert [row for _, row, *_ in own.batch()] == [1]
    monkeypatch.setattr(rows, "get_forward_context", lambda: SimpleNamespace(attn_metadata=None))
    assert own.batch() == []


def test_an_engine_without_rows_does_not_start():
    own = FusionRows(engine(), "cpu", False)
    assert rows_of(engine()) is own and own.is_argmax_invariant() and own.apply("logits") == "logits"
    with pytest.raises(RuntimeError, match="nothing would be fused"):
        rows_of(SimpleNamespace(instance_id="2"))


def test_requests_are_validated_by_the_config_of_their_model_in_any_process():
    one, two = (rows_class(FusionRows, config(fusion_presets=presets)) for presets in ({"a": {"beta": 0.3}}, {}))
    one = pickle.loads(pickle.dumps(one))
    one.validate_params(params(fusion="a"))
    with pytest.raises(ValueError, match="unknown preset fusion='a'"):
        two.validate_params(params(fusion="a"))


def test_beam_search_is_refused_where_its_tokens_would_be_fused():
    from vift_serve.requests import RequestFusion

    beam = SamplingParams(max_tokens=1, logprobs=4, watermarking=False, detokenize=False)
    with pytest.raises(ValueError, match="beam search"):
        validate(RequestFusion(config()), beam)
    for fields in ({"fusion_answer": True}, {"fusion_enabled": False}):
        validate(RequestFusion(config(**fields)), beam)
    validate(RequestFusion(config()), SamplingParams(max_tokens=1, logprobs=4))


# --- the second runner, which was never run -----------------------------------------------------------------------


@pytest.fixture
def states(monkeypatch):
    states = pytest.importorskip("vift_serve.states", reason="this vLLM has no second model runner")
    from vift_serve.requests import RequestFusion

    base = states.DefaultModelState
    monkeypatch.setattr(base, "add_request", lambda *args: None)
    monkeypatch.setattr(base, "prepare_inputs_embeds", lambda *args: "embeddings")
    monkeypatch.setattr(base, "prepare_dummy_inputs", lambda *args: {})
    own = states.FusedModelState.__new__(states.FusedModelState)
    own.fused, own.model = {}, SimpleNamespace(batch=[], fusion=SimpleNamespace(requests=RequestFusion(config())))
    return own


def step(own, places, starts, computed, counts):
    batch = SimpleNamespace(
        idx_mapping_np=np.array(places),
        query_start_loc_np=np.array(starts),
        num_computed_tokens_np=np.array(computed),
        num_scheduled_tokens=np.array(counts),
    )
    assert own.prepare_inputs_embeds({}, batch, None) == "embeddings"
    return own.model.batch


def test_places_of_the_second_runner(states):
    def new(place, prompt, filled=None, **settings):
        own = SimpleNamespace(sampling_params=params(**settings), prompt_token_ids=prompt)
        own.prefill_token_ids = prompt if filled is None else filled
        states.add_request(place, own)

    new(7, PROMPT)
    new(2, [5, 6])
    new(4, PROMPT, [*PROMPT, 11, 12], fusion_answer=True)  # comes back after it was preempted
    batch = step(states, [2, 4, 7], [0, 2, 9, 12], [0, 0, 2], [2, 7, 3])
    assert [rest for _, *rest in batch] == [[2, 0, 7], [9, 2, 3]] and batch[0][0].outputs == [11, 12]
    batch[1][0].computed = 5
    assert [rest for _, *rest in step(states, [7, 4], [0, 1, 2], [5, 7], [1, 1])] == [[1, 7, 1]]
    new(4, PROMPT, fusion=False)  # another request in the same place
    assert step(states, [7, 4], [0, 1, 2], [6, 0], [1, 1]) == []
    states.prepare_dummy_inputs(1, 1)
    assert states.model.batch == []


# --- the edit of a step -------------------------------------------------------------------------------------------


def test_tokens_that_passed_by_and_layers_that_were_not_fused_end_the_engine(monkeypatch):
    fusion = pytest.importorskip("vift_serve.fusion")
    own = fusion.Fusion.__new__(fusion.Fusion)
    request = SimpleNamespace(computed=3)
    with pytest.raises(RuntimeError, match="positions 3 to 4 of a request passed by unfused"):
        own.edits([(request, 0, 5, 1)], torch.zeros(1, 4))
    edit = SimpleNamespace(text_states={2: None, 3: None}, written={3})
    monkeypatch.setattr(own, "edits", lambda *args: [edit], raising=False)
    with pytest.raises(RuntimeError, match=r"fusion_layers=\[2, 3\] cannot be fused at \[2\]"), own.step([1], None):
        pass
    assert not fusion._RUNNING.edits


def test_a_written_token_has_its_whole_stream_in_the_residual(monkeypatch):
    fusion = pytest.importorskip("vift_serve.fusion")
    from modeling_vift.fusion_vift import FusionEdit
    from vift_serve.requests import RequestFusion

    settings, order = (
        RequestFusion(config()).settings({"alpha": 0.5, "beta": 2.0, "fusion_layers": [2]}),
        torch.arange(2),
    )
    edit = FusionEdit(settings, 0.5, 2.0, {2: torch.ones(2, 4)}, None, torch.zeros_like(order), order, order)
    edit.places = torch.tensor([1, 3])
    hidden, residual = torch.randn(4, 4), torch.randn(4, 4)
    before = hidden + residual
    monkeypatch.setattr(fusion._RUNNING, "edits", [edit], raising=False)
    fusion.apply_edits(1, hidden, residual)
    torch.testing.assert_close(hidden + residual, before)
    fusion.apply_edits(2, hidden, residual)
    expected = before.clone()
    expected[[1, 3]] = 0.5 * before[[1, 3]] + 2.0
    torch.testing.assert_close(hidden + residual, expected)
    assert not hidden[[1, 3]].any() and edit.written == {2}
