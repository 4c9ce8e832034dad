"""What the Space refuses, and how: every mistake of a visitor is a message, none a stack trace.

Questions: length, markup, special tokens. Pictures: `vift_eval.images` refuses what cannot be read, and more than
`MAX_PIXELS` before anything is decoded. Requests: `RequestSizeLimit` ends a body that is too long while it arrives.
"""

import contextlib
import inspect
import logging
import re
from functools import wraps

import gradio as gr
from PIL import Image

from vift_eval.cli import UserError
from vift_eval.images import open_image

MAX_CHARACTERS = 1000  # of a question
MAX_TURNS = 41  # of a conversation: twenty questions with answers, and one more
MAX_PIXELS = 25_000_000
MAX_FILE = 10 * 2**20  # bytes of an uploaded file
MAX_BODY = 2 * 2**20  # bytes of any other request
MAX_WAITING = 60  # requests in the queue
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


class RequestSizeLimit:
    """ASGI middleware: a body over the limit is answered with 413, also when its length was not announced."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        # a form around the file; Gradio itself holds the file to MAX_FILE
        limit = MAX_FILE + 2**16 if scope["path"].endswith("/upload") else MAX_BODY
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > limit:
            return await self.refuse(send, limit)
        arrived, too_long = 0, False

        async def counted():
            nonlocal arrived, too_long
            message = await receive()
            arrived += len(message.get("body", b""))
            if too_long := arrived > limit:
                raise BodyTooLong
            return message

        async def unless_too_long(message):
            if not too_long:  # else the reader's own complaint that the body broke off
                await send(message)

        with contextlib.suppress(BodyTooLong):
            await self.app(scope, counted, unless_too_long)
        if too_long:
            await self.refuse(send, limit)

    async def refuse(self, send, limit):
        body = b'{"detail": "the request is longer than %d bytes"}' % limit
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class BodyTooLong(Exception):
    """Raised inside `receive` to end the reading of a request."""
