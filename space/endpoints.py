"""What the Space answers: every public method of `Endpoints` is an endpoint of the API and an MCP tool.

Their docstrings and annotations are what clients and language models read. All settings of a request are arguments;
the object keeps nothing of it, so that visitors with different settings do not mix.
"""

import random

from vift_eval.known import UNKNOWN

from . import views
from .engine import UNFUSED, Engine
from .limits import messages_only

SWEEP_POINTS = 17
NOTICE = f"{UNKNOWN}.\n"


def band(first_layer: float, stop_layer: float, rule: str, span: str) -> dict:
    """Keywords of `generate()`, which says what is wrong with a reversed band."""
    knobs = {"fusion_layers": f"{int(first_layer)}:{int(stop_layer)}", "fusion_rule": rule, "fusion_span": span}
    return knobs if rule == "cascade" else knobs | {"fusion_answer": False}  # see `VIFTConfig`


def user_turn(picture, question: str) -> list[dict]:
    if picture is None:
        raise ValueError("there is no picture: upload one, or press “New scene”")
    return [{"role": "user", "content": question}]


class Endpoints:
    """The functions behind the buttons, for one `Engine`."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.beta_top = min(2.0, 6 * abs(engine.defaults.beta) or 0.6)  # where the strip ends

    @messages_only
    def ask(self, picture, question: str, alpha: float, beta: float, first_layer: int, stop_layer: int,
            rule: str, span: str, max_new_tokens: int):  # fmt: skip
        """
        Ask a question about a picture, without and with ability fusion.

        Args:
            picture: the picture; at most 25 million pixels and 10 MB.
            question: at most 1000 characters.
            alpha: weight of the run with the picture, 0 to 2.
            beta: weight of the run without it, 0 to 2.
            first_layer: first fused layer, counted from 0.
            stop_layer: first layer after the fused ones.
            rule: "cascade", "additive" or "independent".
            span: which tokens are written: "all", "after_image" or "reference".
            max_new_tokens: most tokens of an answer.

        Returns:
            The answer without fusion, the answer with fusion, and a remark (often empty): that the picture is of a
            kind that the model does not know, and the words that it does not know. Both answers grow.
        """
        turns, fusion = user_turn(picture, question), band(first_layer, stop_layer, rule, span)
        remark = None
        for plain, fused in self.engine.answers(turns, picture, [UNFUSED, (alpha, beta)], fusion, int(max_new_tokens)):
            if remark is None:
                remark = f"**{UNKNOWN}.** " if self.engine.is_strange(picture) else ""
                if unknown := ", ".join(self.engine.unknown(question)):
                    remark += f"The model does not know: {unknown} (its vocabulary is closed)."
            yield plain, fused, remark.strip()

    @messages_only
    def sweep(self, picture, question: str, alpha: float, beta: float, first_layer: int, stop_layer: int,
              rule: str, span: str, max_new_tokens: int):  # fmt: skip
        """
        Ask the same question at growing beta: where descriptions end, where answers begin, where garbage starts.

        Args:
            picture: the picture; at most 25 million pixels and 10 MB.
            question: at most 1000 characters.
            alpha: weight of the run with the picture at the marked beta, 0 to 2; from 1 at beta 0 it goes there in a
                straight line, so that the strip begins unfused.
            beta: the beta that is marked in the strip.
            first_layer: first fused layer, counted from 0.
            stop_layer: first layer after the fused ones.
            rule: "cascade", "additive" or "independent".
            span: which tokens are written: "all", "after_image" or "reference".
            max_new_tokens: most tokens of an answer.

        Returns:
            The strip as HTML, and the points as a list of {"alpha", "beta", "kind", "answer"}.
        """
        turns, fusion = user_turn(picture, question), band(first_layer, stop_layer, rule, span)
        top = max(self.beta_top, beta)
        betas = [round(top * k / (SWEEP_POINTS - 1), 4) for k in range(SWEEP_POINTS)]
        pairs = [(round(1 + (alpha - 1) * min(1, b / beta), 4) if beta else alpha, b) for b in betas]
        *_, texts = self.engine.answers(turns, picture, pairs, fusion, int(max_new_tokens))
        *_, (blind,) = self.engine.answers(turns, None, [UNFUSED], fusion, int(max_new_tokens))
        points = [
            {"alpha": a, "beta": b, "kind": views.kind_of(text, blind, self.engine.world.is_caption), "answer": text}
            for (a, b), text in zip(pairs, texts)
        ]
        return views.strip(question, points, blind, beta), points

    @messages_only
    def movement(self, picture, question: str, alpha: float, beta: float, first_layer: int, stop_layer: int,
                 rule: str, span: str):  # fmt: skip
        """
        How far fusion moves each token of the prompt, layer by layer.

        Args:
            picture: the picture; at most 25 million pixels and 10 MB.
            question: at most 1000 characters.
            alpha: weight of the run with the picture, 0 to 2.
            beta: weight of the run without it, 0 to 2.
            first_layer: first fused layer, counted from 0.
            stop_layer: first layer after the fused ones.
            rule: "cascade", "additive" or "independent".
            span: which tokens are written: "all", "after_image" or "reference".

        Returns:
            The heat map as HTML, and its numbers: {"tokens", "layers", "moved"}, moved as shares of each length.
        """
        turns, fusion = user_turn(picture, question), band(first_layer, stop_layer, rule, span)
        movement = self.engine.movement(turns, picture, {"alpha": alpha, "beta": beta} | fusion)
        return views.heat_map(movement, range(int(first_layer), int(stop_layer))), movement

    @messages_only
    def chat(self, message: str, history: list, picture, fused: bool, alpha: float, beta: float,
             first_layer: int, stop_layer: int, rule: str, span: str, max_new_tokens: int):  # fmt: skip
        """
        One more turn of a conversation about a picture.

        Args:
            message: the next turn, at most 1000 characters.
            history: the turns so far, each {"role", "content"}, user first.
            picture: the picture, shown in the first turn; there may be none.
            fused: whether to fuse.
            alpha: weight of the run with the picture, 0 to 2.
            beta: weight of the run without it, 0 to 2.
            first_layer: first fused layer, counted from 0.
            stop_layer: first layer after the fused ones.
            rule: "cascade", "additive" or "independent".
            span: which tokens are written: "all", "after_image" or "reference".
            max_new_tokens: most tokens of an answer.

        Returns:
            An empty line for the next message, and the conversation with the reply, which grows. A reply about a
            picture of a kind that the model does not know begins with a line that says so.
        """
        shown = [*(history or []), {"role": "user", "content": message}]
        # the model reads what it said, not what the page said of it
        turns = [turn | {"content": turn["content"].removeprefix(NOTICE)} for turn in shown]
        pair, fusion = (alpha, beta) if fused else UNFUSED, band(first_layer, stop_layer, rule, span)
        notice = None
        for (reply,) in self.engine.answers(turns, picture, [pair], fusion, int(max_new_tokens)):
            if notice is None:
                notice = NOTICE if self.engine.is_strange(picture) else ""
            yield "", [*shown, {"role": "assistant", "content": notice + (reply or "(nothing)")}]

    @messages_only
    def new_scene(self, seed: float | None = None):
        """
        A scene that training never saw, a question about it and the right answer.

        Args:
            seed: the same number gives the same scene; none gives any.

        Returns:
            The picture, the question, the right answer, and the scene in words.
        """
        return self.engine.world.scene(random.randrange(10**9) if seed is None else int(seed))
