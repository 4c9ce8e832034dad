"""Asks one VIFT model for the Space: streamed answers, fused and unfused in one batch.

Every row of a batch holds the same prompt with coefficients of its own (`alpha`, `beta` of shape (B,)), so that
*without fusion* (alpha = 1, beta = 0: the unfused model, bit for bit), *with fusion* and a whole range of betas cost
one `generate()`. All settings are arguments of a call; nothing of a request is kept on the engine or on the model.

    h'(v,q) = alpha h(v,q) + beta h(q)      (arXiv 2502.11427)
"""

import contextlib
import queue
import re
import threading
from pathlib import Path

import torch
from transformers.generation.stopping_criteria import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from modeling_vift import resolve_fusion
from vift_eval.known import Known, features
from vift_eval.models import load_model, unknown_words
from vift_hub.cli import UserError

from .limits import MAX_TURNS, check_text
from .worlds import world_of

try:
    import spaces  # on a ZeroGPU Space: lends a GPU for the time of a call

    gpu = spaces.GPU
except ImportError:

    def gpu(function):
        return function


UNFUSED = (1.0, 0.0)  # alpha, beta
SMALL = 500_000_000  # parameters; a smaller model answers on a CPU while a visitor waits
KNOWN = Path(__file__).with_name("known")  # rules for pictures that a model does not know, a file a model


class Streamer(BaseStreamer):
    """Puts the texts of all rows on a queue after every step (transformers' own streamers take one row)."""

    def __init__(self, tokenizer):
        self.tokenizer, self.ids, self.texts = tokenizer, None, queue.SimpleQueue()

    def put(self, value):
        if value.ndim > 1:  # the prompt comes first
            self.ids = [[] for _ in range(len(value))]
            return
        for row, token in zip(self.ids, value.tolist()):
            row.append(token)
        self.texts.put([text.strip() for text in self.tokenizer.batch_decode(self.ids, skip_special_tokens=True)])

    def end(self):
        pass  # `run` in `Engine.answers` ends the queue, after an error too


class Stopped(StoppingCriteria):
    """Ends generate() at the next step once the visitor is gone."""

    def __init__(self):
        self.event = threading.Event()

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


def locate(name: str) -> str:
    """The folder of a model: a folder stays, `org/name@commit` is downloaded at that commit.

    Raises: UserError, for a Hub id without a commit: its code is run, so it must be one that was read.
    """
    if Path(name).exists():
        return name
    repo, _, commit = name.partition("@")
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise UserError(
            f"VIFT_MODEL={name} is no folder, and a Hub id needs its commit, since its code is run: org/name@<40 hex>"
        )
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(repo, revision=commit)
    except (OSError, ValueError) as error:
        raise UserError(f"VIFT_MODEL={name} cannot be downloaded ({str(error).splitlines()[0]})") from error


class Engine:
    """
    One model and its processor.

    Args:
        name (`str`): folder, or `org/name@commit` on the Hub.

    Attributes:
        defaults (`FusionSettings`): the config's fusion, which all settings start from.
        longest (`int`): the most tokens of an answer. slots (`int`): answers at a time.
        world: of `worlds`, what the model was trained on. known (`Known` or None): the rule of `vift_eval.known`.
    """

    def __init__(self, name: str):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.name = name
        folder = locate(name)
        self.model, self.processor = load_model(folder, dtype="bfloat16" if self.device == "cuda" else "float32")
        self.model.to(self.device)
        self.tokenizer = self.processor.tokenizer
        self.config = self.model.config
        self.num_layers = self.config.get_text_config().num_hidden_layers
        self.defaults = resolve_fusion(self.config, True)
        self.small = self.model.num_parameters() < SMALL
        self.longest, self.slots = (64, 2) if self.small else (512, 1)
        self.world, self.known = world_of(self.config), Known.load(KNOWN, Path(folder))
        # what runs the model; on ZeroGPU these calls get the GPU
        self.answers = gpu(self.answers)
        self.movement = gpu(self.movement)
        self.is_strange = gpu(self.is_strange)

    def prompt(self, messages: list[dict], image, rows: int, new_tokens: int) -> dict:
        """
        Inputs of `rows` equal prompts.

        Args:
            messages: `{"role", "content"}` with text contents, user first, taking turns, user last.
            image (`PIL.Image.Image` or None): shown in the first turn.

        Raises: ValueError, for text, turns or lengths that cannot be asked.
        """
        if len(messages) > MAX_TURNS:
            raise ValueError(f"the conversation has {len(messages)} turns; at most {MAX_TURNS}: start a new one")
        if not 1 <= new_tokens <= self.longest:
            raise ValueError(f"answer length {new_tokens} must be 1 to {self.longest} tokens")
        turns = []
        for number, message in enumerate(messages):
            role = ("user", "assistant")[number % 2]
            if message["role"] != role:
                raise ValueError(f"turn {number + 1} must be the {role}'s, not {message['role']!r}")
            if role == "user":
                check_text(message["content"], self.tokenizer.all_special_tokens)
            turns.append({"role": role, "content": [{"type": "text", "text": message["content"]}]})
        if image is not None:
            turns[0]["content"].insert(0, {"type": "image", "image": image})
        inputs = self.processor.apply_chat_template(
            [turns] * rows, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        tokens = inputs["input_ids"].shape[1]
        room = self.config.get_text_config().max_position_embeddings - new_tokens
        if tokens > room:
            raise ValueError(f"the prompt has {tokens} tokens; this model reads at most {room} before an answer")
        return inputs.to(self.device)

    def answers(self, messages: list[dict], image, pairs: list[tuple], fusion: dict, new_tokens: int):
        """
        Greedy answers, one per pair (alpha, beta), as they grow: yields a list of texts after every step or few.

        Args:
            fusion (`dict`): the rest of the fusion keywords of `generate()`: layers, rule, span.

        Raises: ValueError, before anything is computed.
        """
        for alpha, beta in pairs:
            resolve_fusion(self.config, True, alpha=alpha, beta=beta, **fusion)
        inputs = self.prompt(messages, image, len(pairs), new_tokens)
        streamer, stopped = Streamer(self.tokenizer), Stopped()
        alpha, beta = torch.tensor(pairs, dtype=torch.float32, device=self.device).unbind(dim=1)
        failure = []

        def run():
            try:
                self.model.generate(
                    **inputs, fusion=True, alpha=alpha, beta=beta, **fusion, do_sample=False,
                    max_new_tokens=new_tokens, streamer=streamer, stopping_criteria=[stopped],
                )  # fmt: skip
            except Exception as error:  # raised again where the visitor is
                failure.append(error)
            finally:
                streamer.texts.put(None)

        threading.Thread(target=run, daemon=True).start()
        try:
            running = True
            while running:
                waiting = [streamer.texts.get()]
                with contextlib.suppress(queue.Empty):
                    while True:
                        waiting.append(streamer.texts.get_nowait())
                running = waiting[-1] is not None
                texts = [text for text in waiting if text is not None]
                if texts:  # a slow visitor gets the newest, not every step
                    yield texts[-1]
            if failure:
                raise failure[0]
        finally:  # also when the visitor left and this generator is closed
            stopped.event.set()

    @torch.inference_mode()
    def movement(self, messages: list[dict], image, fusion: dict) -> dict:
        """
        How far fusion moves each token of the prompt: |h_fused - h_plain| / |h_plain| at the input of every layer.

        Returns:
            {"tokens": T labels, "layers": L + 1 names, "moved": (L + 1) x T numbers}. The tokens of the image are
            one column, their mean; the last row is the output of the last layer, after the final norm.
        """
        resolve_fusion(self.config, True, **fusion)
        inputs = self.prompt(messages, image, 1, 1)
        plain, fused = (
            self.model(**inputs, fusion=mode, output_hidden_states=True, logits_to_keep=1).hidden_states
            for mode in (False, fusion)
        )
        ids = inputs["input_ids"][0]
        moved = torch.stack(
            [((b - a).float().norm(dim=-1) / a.float().norm(dim=-1).clamp_min(1e-12))[0] for a, b in zip(plain, fused)]
        ).cpu()
        is_image = (ids == self.config.image_token_id).cpu()
        columns, labels = [], []
        for number, token in enumerate(ids.tolist()):
            if not is_image[number]:
                columns.append(moved[:, number])
                labels.append(self.tokenizer.decode([token]))
            elif number == 0 or not is_image[number - 1]:
                columns.append(moved[:, is_image].mean(dim=1))
                labels.append(f"image ({int(is_image.sum())} tokens)")
        layers = [*(str(layer) for layer in range(self.num_layers)), "output"]
        return {"tokens": labels, "layers": layers, "moved": torch.stack(columns, dim=1).tolist()}

    def is_strange(self, image) -> bool:
        """Whether the picture is of a kind that the model does not know, where a rule for that was measured."""
        if image is None or self.known is None:
            return False
        return bool(self.known.distances(features(self.model, self.processor, [image]))[0] > self.known.limit)

    def unknown(self, text: str) -> list[str]:
        return unknown_words(self.tokenizer, text)
