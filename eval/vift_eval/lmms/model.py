"""The model `vift` of lmms-eval, chat and simple (its interface of 0.7.3).

    python -m lmms_eval --model vift --model_args pretrained=DIR,beta=0.15 --tasks pope --batch_size 8

Both classes render a request into the same prompt, and batches hold requests of any tasks that share their generation
settings. A task may carry fusion settings of its own in `generation_kwargs` (the groups in `eval/tasks` do); those
in `--model_args` take the place of a task's.

An exception is never an answer: it ends the run and names the request, or with `on_error=report` the request is left
out of the scores and listed in the results file. The results file gets a section `vift`: fusion settings in force by
task, model revision and fingerprint, package versions, failed requests.
"""

import atexit
import contextlib
import inspect
import json
import os

import torch
from accelerate import PartialState
from lmms_eval import evaluator, utils
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger
from tqdm import tqdm

from vift_hub.pictures import whole_pictures
from vift_layers import interventions

from ..engine import FUSION_KEYS, Answer, Engine, Request
from ..models import load_model
from ..vllm_engine import VLLMEngine
from .record import new_record, note, with_record

MAX_ROUNDS = 32


class RequestError(RuntimeError):
    """A request that could not be answered; the message names it."""


def name_of(request: Instance) -> str:
    return f"{request.task_name}, document {request.doc_id}"


def is_padding(request: Instance) -> bool:
    """Whether it only fills up a rank, so that all have equally many."""
    return bool((request.metadata or {}).get("__padding_only__"))


class VIFT(lmms):
    """
    Args:
        pretrained: folder or Hub id of a VIFT checkpoint.
        revision: commit, tag or branch on the Hub.
        engine: "transformers", or "vllm" with the plug-in of docs/serving.md (answers only, no interventions).
        dtype: "auto" (float32 on the CPU, else the weights' own), "float32", "bfloat16" or "float16".
        device: "cuda", "cuda:1", "cpu", ...; the GPU of this rank, or the CPU, when None.
        batch_size: requests per batch.
        max_new_tokens: for tasks that name no limit.
        system_prompt: text, or a file with it, put before every chat that has none.
        on_error: "raise", or "report" to leave failing requests out and list them.
        min_pixels, max_pixels: for image processors that have them.
        knock_out, skip: layers such as "4:8" or "~4:8" in which text can't attend to images, or that are skipped.
        skip_tokens: "all", "image" or "text", with `skip`.
        trust_remote_code: run the Python files of a repository on the Hub.
        fusion: `fusion`, `alpha`, `beta`, `dose` and all `fusion_...`, as in `generate()`.

    Raises:
        ValueError: an unknown argument, or a value that cannot be; the message names both.
    """

    def __init__(
        self,
        pretrained: str,
        revision: str | None = None,
        engine: str = "transformers",
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str = 1,
        max_new_tokens: int = 1024,
        system_prompt: str | None = None,
        on_error: str = "raise",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        knock_out: str | None = None,
        skip: str | None = None,
        skip_tokens: str = "all",
        trust_remote_code: bool = False,
        **fusion,
    ):
        super().__init__()
        if unknown := set(fusion) - set(FUSION_KEYS):
            known = [name for name in inspect.signature(VIFT).parameters if name != "fusion"] + list(FUSION_KEYS)
            raise ValueError(f"unknown model argument {sorted(unknown)[0]!r}; known: {', '.join(known)}")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size={batch_size!r} must be a whole number of at least 1")
        if on_error not in ("raise", "report"):
            raise ValueError(f"on_error={on_error!r} must be 'raise' or 'report'")
        if isinstance(fusion.get("fusion_layers"), str) and fusion["fusion_layers"].startswith("["):
            fusion["fusion_layers"] = json.loads(fusion["fusion_layers"])
        world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
        if device is None:
            device = f"cuda:{rank}" if torch.cuda.is_available() else "cpu"
        elif device == "cuda" and world > 1:
            device = f"cuda:{rank}"
        self.device = torch.device(device)
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for it
            raise ValueError(f"device={device} is not here ({str(error).splitlines()[0]})") from error
        if dtype == "auto" and self.device.type == "cpu":
            dtype = "float32"
        own = {"min_pixels": min_pixels, "max_pixels": max_pixels, "knock_out": knock_out, "skip": skip}
        if engine == "vllm":
            if given := [name for name, value in own.items() if value is not None]:
                raise ValueError(f"{given[0]}={own[given[0]]} needs engine=transformers")
            if world > 1:
                raise ValueError(f"engine=vllm in {world} processes: start one, vLLM spreads the work by itself")
            self.engine = VLLMEngine(str(pretrained), revision, dtype, max_new_tokens)
        elif engine == "transformers":
            with PartialState().local_main_process_first():  # the ranks of a machine share the cache of remote code
                model, processor = load_model(str(pretrained), revision, dtype, "pretrained", False, trust_remote_code)
            for name in ("min_pixels", "max_pixels"):
                if own[name] is None:
                    continue
                if not hasattr(processor.image_processor, name):
                    size = processor.image_processor.size
                    why = f"this image processor has none, it resizes every image to {size}"
                    raise ValueError(f"{name}={own[name]}: {why}")
                setattr(processor.image_processor, name, own[name])
            self.engine = Engine(model.to(self.device), processor, max_new_tokens)
        else:
            raise ValueError(f"engine={engine!r} must be 'transformers' or 'vllm'")
        self.fusion, self.batch_size, self.on_error = fusion, int(batch_size), on_error
        self._warned: list[list[str]] = []
        self.system_prompt = self._resolve_system_prompt(system_prompt)
        self.engine.settings(Request(1, fusion=fusion))  # a bad fusion argument is refused here
        self.interventions = {"knock_out": knock_out, "skip": skip, "skip_tokens": skip_tokens}
        with self._intervened():  # and a bad window here
            pass
        # lmms-eval ends in a barrier and leaves its group open. A thread of gloo that still holds the barrier's tensor
        # while Python shuts down aborts the process (torch 2.13).
        atexit.register(PartialState().destroy_process_group)
        self.record = new_record(str(pretrained), revision, self.engine.model) | {"interventions": self.interventions}

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None):
        """`--model_args` over the command line's own options (which always hold a batch size)."""
        given = {name: value for name, value in (additional_config or {}).items() if value is not None}
        given |= utils.simple_parse_args_string(arg_string)
        if "pretrained" not in given:
            raise ValueError("model_args: pretrained=DIR is missing: which checkpoint is asked?")
        return cls(**given)

    # --- requests -------------------------------------------------------------------------------------------------

    def _doc(self, task, split, doc_id):
        return self.task_dict[task][split][doc_id]

    def _prompt(self, messages: list[dict]):
        messages = [dict(message) for message in messages]
        return self.engine.render(self._apply_system_prompt(messages, self.system_prompt))

    def _request(self, kwargs: dict) -> Request:
        request = Request.from_kwargs(kwargs, self.engine.max_new_tokens)
        if self.fusion:
            request.fusion = dict(self.fusion)
        if request.unknown and request.unknown not in self._warned:
            self._warned.append(request.unknown)
            logger.warning(f"generation_kwargs {', '.join(request.unknown)} mean nothing to vift and are left out")
        return request

    def _messages(self, context, visuals) -> list[dict]:
        content = [{"type": "image", "url": visual} for visual in visuals or []]
        return [{"role": "user", "content": [*content, {"type": "text", "text": context}]}]

    def _simple_messages(self, context, doc_to_visual, task, split, doc_id) -> list[dict]:
        visuals = doc_to_visual(self._doc(task, split, doc_id)) if doc_to_visual is not None else None
        return self._messages(context, visuals)

    def _batches(self, requests, generation_kwargs):
        """
        (request settings, indices) of each batch: equal settings together, as many pictures and about as long a text,
        most and longest first so that an OOM shows at once.
        """
        groups: dict[str, list[int]] = {}
        for index, kwargs in enumerate(generation_kwargs):
            if not is_padding(requests[index]):  # nothing is sharded, so that a rank may have fewer
                groups.setdefault(json.dumps(kwargs, sort_keys=True, default=str), []).append(index)
        for members in groups.values():
            settings = self._request(generation_kwargs[members[0]])
            pictures = {i: self._pictures(requests[i]) if self.batch_size > 1 else 0 for i in members}
            members.sort(key=lambda i: (-pictures[i], -len(str(requests[i].args[0]))))
            for start in range(0, len(members), self.batch_size):
                yield settings, members[start : start + self.batch_size]

    def _pictures(self, request) -> int:
        """How many pictures a request shows: each takes far more places than the text's length tells."""
        try:
            contents = [message["content"] for message in self._chat(request)]
        except Exception:  # it fails again, and is named, when it is its turn
            return 0
        return sum(part["type"] == "image" for content in contents if not isinstance(content, str) for part in content)

    def _run(self, requests, generation_kwargs, answer, description: str) -> list:
        """`answer(settings, requests)` for each batch; results in the order of `requests`, None for the failed."""
        results: list = [None] * len(requests)
        total = len(requests)
        with tqdm(total=total, desc=description, disable=self.rank != 0) as bar, self._intervened():
            for settings, batch in self._batches(requests, generation_kwargs):
                chosen = [requests[i] for i in batch]
                note(self.record["tasks"], self.engine.settings(settings), settings, chosen)
                try:
                    answers = answer(settings, chosen)
                except Exception as error:
                    answers = self._one_by_one(settings, chosen, answer, error)
                for index, one in zip(batch, answers):
                    results[index] = one
                bar.update(len(batch))
        return results

    def _intervened(self) -> contextlib.ExitStack:
        """What `knock_out` and `skip` ask for, while it lasts."""
        given, model, stack = self.interventions, self.engine.model, contextlib.ExitStack()
        if given["knock_out"] is not None:
            stack.enter_context(interventions.knock_out(model, given["knock_out"]))
        if given["skip"] is not None:
            stack.enter_context(interventions.skip(model, given["skip"], given["skip_tokens"]))
        return stack

    def _one_by_one(self, settings, requests, answer, batch_error) -> list:
        """The same requests alone, to find the one that fails."""
        answers = []
        for request in requests:
            try:
                answers += answer(settings, [request])
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                if self.on_error == "raise":
                    raise RequestError(f"{name_of(request)}: {reason}") from error
                logger.error(f"{name_of(request)} failed and is left out of the scores: {reason}")
                failed = {"doc_id": request.doc_id, "error": reason}
                self.record["tasks"][request.task_name]["failed"].append(failed)
                self._leave_out(request)
                answers.append(None)
        if self.on_error == "raise":
            names = ", ".join(map(name_of, requests))
            reason = f"fails as a batch of {len(requests)}, not alone ({names}): {batch_error}"
            raise RequestError(f"{reason}; a smaller batch_size may help") from batch_error
        return answers

    @staticmethod
    def _leave_out(request) -> None:
        """Takes the request from its task, so that no score counts it (the task is reached by its bound methods)."""
        for argument in request.args:
            instances = getattr(getattr(argument, "__self__", None), "_instances", None)
            if instances is not None:
                instances[:] = [other for other in instances if other is not request]
                if not instances:
                    raise RequestError(f"{request.task_name}: no request could be answered")
                return
        raise RequestError(f"{name_of(request)} failed and cannot be left out")

    def clean(self):
        """Frees the model before scoring (lmms-eval may start a judge on the same device)."""
        self.engine = None
        super().clean()

    # --- what lmms-eval calls -------------------------------------------------------------------------------------

    @whole_pictures()  # lmms-eval turns on that Pillow takes truncated ones
    def generate_until(self, requests) -> list[GenerationResult]:
        def answer(settings, batch):
            prompts = [self._prompt(self._chat(request)) for request in batch]
            return self.engine.generate(self.engine.inputs(prompts), settings)

        kwargs = [self._generation_kwargs(request) for request in requests]
        return [result(one) for one in self._run(requests, kwargs, answer, "Answering")]

    @whole_pictures()
    def generate_until_multi_round(self, requests) -> list[list[str]]:
        """Rounds until the task ends them; each is asked anew, with what the task makes of the answers so far."""
        rounds: list[list[str]] = [[] for _ in requests]
        states = {i: (self._chat(one), None) for i, one in enumerate(requests) if not is_padding(one)}
        for number in range(1, MAX_ROUNDS + 1):
            if not states:
                return rounds
            active = list(states)
            chats = {id(requests[i]): states[i][0] for i in active}

            def answer(settings, batch, chats=chats):
                prompts = [self._prompt(chats[id(request)]) for request in batch]
                return self.engine.generate(self.engine.inputs(prompts), settings)

            open_requests = [requests[i] for i in active]
            kwargs = [self._generation_kwargs(request) for request in open_requests]
            for i, one in zip(active, self._run(open_requests, kwargs, answer, f"Round {number}")):
                if one is None:
                    del states[i]
                    continue
                rounds[i].append(one.text)
                chat, over, rounds[i], information = self._next_round(requests[i], number, rounds[i], states[i][1])
                if over:
                    del states[i]
                else:
                    states[i] = (chat, information)
        raise RequestError(f"{len(states)} multi-round requests did not end within {MAX_ROUNDS} rounds")

    @whole_pictures()
    def loglikelihood(self, requests) -> list[GenerationResult]:
        """(negative log-likelihood in nats, greedy?) each, wrapped: lmms-eval 0.7.3 makes strings of bare tuples."""

        def answer(settings, batch):
            prompts, continuations = [], []
            for request in batch:
                context, target, doc_to_visual, doc_id, task, split = request.args
                continuations.append(target if isinstance(target, str) else target(self._doc(task, split, doc_id)))
                prompts.append(self._prompt(self._simple_messages(context, doc_to_visual, task, split, doc_id)))
            return self.engine.score(prompts, continuations, settings)

        scores = self._run(requests, [{} for _ in requests], answer, "Scoring")
        return [GenerationResult(text=(0.0, False) if score is None else score) for score in scores]


class VIFTSimple(VIFT):
    """Requests of (context, generation kwargs, doc_to_visual, document, task, split)."""

    is_simple = True

    def _generation_kwargs(self, request) -> dict:
        return request.args[1]

    def _chat(self, request) -> list[dict]:
        context, _, doc_to_visual, *rest = request.args
        doc_id, task, split = rest[-3:]
        return self._simple_messages(context, doc_to_visual, task, split, doc_id)

    def _next_round(self, request, number, answers, information):
        _, _, _, doc_to_text, doc_id, task, split = request.args
        visuals, context, over, answers, information = doc_to_text(
            self._doc(task, split, doc_id),
            previous_output=answers,
            round_idx=number,
            previous_round_info=information,
        )
        return None if over else self._messages(context, visuals), over, list(answers), information


class VIFTChat(VIFT):
    """Requests of (context, doc_to_messages, generation kwargs, document, task, split)."""

    is_simple = False

    def _generation_kwargs(self, request) -> dict:
        return request.args[2]

    def _chat(self, request) -> list[dict]:
        _, doc_to_messages, _, doc_id, task, split = request.args
        return doc_to_messages(self._doc(task, split, doc_id))

    def _next_round(self, request, number, answers, information):
        _, doc_to_messages, _, doc_id, task, split = request.args
        chat, over, answers, information = doc_to_messages(
            self._doc(task, split, doc_id),
            round_idx=number,
            previous_output=answers,
            previous_round_info=information,
        )
        return chat, over, list(answers), information


def result(answer: Answer | None) -> GenerationResult:
    if answer is None:  # left out of its task, or there only to fill up a rank
        return GenerationResult(text="")
    return GenerationResult(answer.text, TokenCounts(answer.input_tokens, answer.output_tokens))


evaluator.evaluate = with_record(evaluator.evaluate)
