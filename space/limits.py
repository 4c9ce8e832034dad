"""What the Space refuses, and how: every mistake of a visitor is a message, none a stack trace.

Questions: length, markup, special tokens. Pictures: `vift_eval.images` refuses what cannot be read, and more than
`MAX_PIXELS` before anything is decoded. What no component can read: `one_line`. Whole requests: `gate.py`.
"""

import contextlib
import inspect
import logging
import re
from functools import wraps

import gradio as gr
from gradio.components.chatbot import ChatbotDataMessages
from PIL import Image
from pydantic import ValidationError, model_validator

from vift_eval.images import open_image
from vift_hub.cli import UserError

MAX_CHARACTERS = 1000  # of a question
MAX_TURNS = 41  # of a conversation: twenty questions with answers, and one more
MAX_PIXELS = 25_000_000
MARKUP = re.compile(r"</?[a-zA-Z!?][^\s>]*")


def check_text(text: str, special_tokens: list[str]) -> None:
    """Raises ValueError for what cannot be a question."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError("the question is empty")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the question has {len(text)} characters; at most {MAX_CHARACTERS} are read")
    for token in special_tokens:
        if token in text:
            raise ValueError(f"the question holds {token}, which stands for something else in a prompt")
    if markup := MARKUP.search(text):
        raise ValueError(f"the question holds markup ({markup[0][:20]}): ask in plain words")


# The next two take the place of a component's own `preprocess`, on the instance: deriving a class from a component
# makes gradio write a file beside the source.


def open_picture(payload) -> Image.Image | None:
    """`gr.Image.preprocess`: the uploaded file as RGB, opened with care; what cannot be used is a message."""
    if payload is None:
        return None
    if payload.path is None:
        raise gr.Error("the picture must be uploaded as a file", print_exception=False)
    called = payload.orig_name or "the picture"  # the visitor's name for the file, not where it lies here
    try:
        image, notes = open_image(payload.path, max_pixels=MAX_PIXELS)
    except ValueError as error:
        raise gr.Error(str(error).replace(str(payload.path), called), print_exception=False) from None
    for note in notes:
        gr.Info(note.replace(str(payload.path), called))
    return image


class Turns(ChatbotDataMessages):
    """What `gr.Chatbot` reads; a content may also be a text, as everywhere else."""

    @model_validator(mode="before")
    @classmethod
    def with_parts(cls, turns):
        if not isinstance(turns, list):
            return turns
        return [
            turn | {"content": [{"type": "text", "text": turn["content"]}]}
            if isinstance(turn, dict) and isinstance(turn.get("content"), str)
            else turn
            for turn in turns
        ]


def plain_text(payload) -> str:
    """`gr.Textbox.preprocess`: a text; the component itself would make one of a list or a number."""
    if payload is not None and not isinstance(payload, str):
        raise ValueError(f"must be a text, not {payload!r}")
    return payload


def text_turns(payload) -> list[dict]:
    """`gr.Chatbot.preprocess`: turns of text as `{"role", "content"}`; a file or a component is refused."""
    turns = []
    for message in payload.root if payload is not None else []:
        if any(getattr(part, "type", None) != "text" for part in message.content):
            raise gr.Error("a conversation holds text only", print_exception=False)
        turns.append({"role": message.role, "content": "\n".join(part.text for part in message.content)})
    return turns


@contextlib.contextmanager
def as_message():
    """A ValueError becomes its text as a message, anything else a line without details."""
    try:
        yield
    except gr.Error:
        raise
    except (ValueError, UserError) as error:
        raise gr.Error(str(error), print_exception=False) from None
    except Exception as error:
        logging.getLogger("space").exception("unexpected error", exc_info=error)
        raise gr.Error("Something went wrong here. Please try again.", print_exception=False) from None


def messages_only(function):
    """Wraps what Gradio calls in `as_message`; a generator is covered until its end."""
    if not inspect.isgeneratorfunction(function):
        return as_message()(function)

    @wraps(function)
    def wrapped(*args, **kwargs):
        with as_message():
            yield from function(*args, **kwargs)

    return wrapped


def one_line(error: Exception) -> str:
    """What a component or gradio says of an input that it cannot read, without paths, addresses and advice."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return ": ".join([*([".".join(map(str, first["loc"]))] if first["loc"] else []), first["msg"]])
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return re.sub(r"(?<!\w)/[\w./-]+", "a path", lines[0])[:300]


def quiet(demo: gr.Blocks) -> gr.Blocks:
    """Makes every input that cannot be read a message that names the argument; gradio prints a stack trace for it."""

    def told(block, preprocess):
        def wrapped(payload):
            try:
                return preprocess(payload)
            except gr.Error as error:
                raise Unreadable(block, error.message) from None
            except ValueError as error:
                raise Unreadable(block, one_line(error)) from None
            except Exception:  # a TypeError of a comparison says nothing to a visitor
                raise Unreadable(block, f"cannot be {payload!r:.80}") from None

        return wrapped

    for block in demo.blocks.values():
        if isinstance(block, gr.components.Component):
            block.preprocess = told(block, block.preprocess)
    preprocess_data = demo.preprocess_data

    @wraps(preprocess_data)
    async def wrapped(block_fn, inputs, *args, **kwargs):
        try:
            return await preprocess_data(block_fn, inputs, *args, **kwargs)
        except Unreadable as error:
            names = list(inspect.signature(block_fn.fn).parameters)
            text = f"{names[block_fn.inputs.index(error.block)]}: {error.text}"
        except Exception as error:
            names = {"ImageData": "picture: ", "Turns": "history: "}
            text = names.get(getattr(error, "title", ""), "") + one_line(error)
        raise gr.Error(text, print_exception=False)

    demo.preprocess_data = wrapped
    return demo


class Unreadable(gr.Error):
    """A component could not read its input."""

    def __init__(self, block, text: str):
        super().__init__(text, print_exception=False)
        self.block, self.text = block, text
