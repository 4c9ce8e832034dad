"""vLLM with the plug-in answers as `generate()` does: ids, and log-probabilities of the first token."""

import pytest

from studies.benchmarks.asking import (
    OTHERS,
    SETTINGS,
    UNSALTED,
    chat,
    difference,
    generated,
    in_engine,
    pictures,
    reference,
)

pytest.importorskip("vllm", reason="vLLM is not installed: docs/serving.md, 'Install'")
pytestmark = pytest.mark.slow
LIMIT = 1e-4  # of a log-probability


def jobs(count: int, settings) -> list[dict]:
    """Each of `count` questions under each of `settings`: neighbours differ in their settings alone."""
    asked = pictures(count)
    return [{"picture": i, "messages": chat(asked[i][1]), "settings": s} for i in range(count) for s in settings]


def check(waves, answers):
    for wave, own in zip(waves, answers, strict=True):
        equal, largest = difference(wave, own)
        assert equal == len(wave) and largest <= LIMIT


@pytest.fixture(scope="module")
def turns():
    """First and second turns under every setting, the second also after an answer that had another setting."""
    first = jobs(3, {**SETTINGS, **OTHERS}.values())
    tokenizer = reference()[1].tokenizer
    said = [tokenizer.decode(answer["ids"], skip_special_tokens=True).strip() for answer in generated(first)]
    questions = [pictures(3)[one["picture"]][1] for one in first]
    again = [pictures(3)[one["picture"] - 1][1] for one in first]
    second = [one | {"messages": chat(q, a, r)} for one, q, a, r in zip(first, questions, said, again)]
    mixed = [one | {"settings": other["settings"]} for one, other in zip(second, second[1:] + second[:1])]
    text = [one | {"messages": chat("what is two plus three ?", image=False)} for one in first[:4]]
    return [first, second, first[::-1], mixed, text]


def test_settings_in_one_batch_over_a_prefix_cache_and_in_two_turns(turns):
    answers, counted = in_engine(turns, block_size=32)
    assert counted["prefix_cache_hits"] > 0
    check(turns, answers)


def test_chunks_of_a_few_tokens_and_preempted_requests(turns):
    answers, counted = in_engine(turns, block_size=32, num_gpu_blocks_override=12, max_num_batched_tokens=32)
    assert counted["num_preemptions"] > 0
    check(turns, answers)


def test_a_compiled_decoder(turns):
    answers, _ = in_engine(turns[:2], enforce_eager=False)
    check(turns[:2], answers)


def test_two_tensor_parallel_workers(turns):
    answers, _ = in_engine(turns[:1], env={"VLLM_CPU_OMP_THREADS_BIND": "0|1"}, tensor_parallel_size=2)
    check(turns[:1], answers)


def test_without_salts_answers_would_differ(turns):
    """The tests above would see it."""
    answers, counted = in_engine(turns[1:2] * 2, block_size=32, env={UNSALTED: "1"})
    assert counted["prefix_cache_hits"] > 0
    assert difference(turns[1], answers[1])[1] > LIMIT


@pytest.mark.parametrize(
    "engine, named",
    [
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size"),
        ({"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, "scheduler_cls"),
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}}, "drafted"),
        ({"hf_overrides": {"fusion_rule": "independent", "fusion_answer": False}}, "fusion_rule='independent'"),
    ],
)
def test_what_would_be_wrong_is_refused_at_start(engine, named):
    with pytest.raises(RuntimeError, match="cannot be served") as error:
        in_engine([], **engine)
    assert named in str(error.value)
