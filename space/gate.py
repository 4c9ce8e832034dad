"""What a request meets before Gradio: its length, room for its file, the wait before it; errors are one line."""

import contextlib
import json
import logging
import time
from pathlib import Path
from stat import S_ISREG

MAX_FILE = 10 * 2**20  # bytes of an uploaded file
MAX_BODY = 2 * 2**20  # bytes of any other request
MAX_STORED = 64 * 2**20  # bytes of all files that visitors left
KEPT = 60  # seconds that a file stays at least
PROMISED = 10  # seconds in which an answer is given, or is refused at once
CROWDED = 2  # how much longer an answer takes while others are asked than the average of all says
UNKNOWN = 1.0  # seconds of an answer before one was timed


class Refused(Exception):
    """Status, what the visitor reads, and after how many seconds another try is worth it."""

    def __init__(self, status: int, detail: str, retry: int | None = None):
        super().__init__(detail)
        self.status, self.detail, self.retry = status, detail, retry


def make_room(folder: Path, now: float) -> None:
    """Deletes the oldest files in `folder` until one more fits into `MAX_STORED`; `Refused` while all are new."""
    files = []
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # gradio deletes files, too
            state = file.stat()
            files += [(state.st_mtime, state.st_size, file)] if S_ISREG(state.st_mode) else []
    stored = sum(size for _, size, _ in files)
    for changed, size, file in sorted(files):
        if stored + MAX_FILE <= MAX_STORED:
            return
        if now - changed < KEPT:
            break
        file.unlink(missing_ok=True)
        stored -= size
    if stored + MAX_FILE > MAX_STORED:
        raise Refused(503, f"too many pictures were uploaded: try again in {KEPT} seconds", KEPT)


def wait(queue, joining: int) -> float:
    """
    Seconds until a new request would be answered: what stands before it, each by what its function took until now.

    As if one were answered after the other: several slots share one processor. `joining` have passed the gate and do
    not stand in the queue yet; each counts as the slowest function.
    """
    ahead = [event for waiting in queue.event_queue_per_concurrency_id.values() for event in waiting.queue]
    ahead += [event for job in queue.active_jobs if job is not None for event in job]
    took = {function: timed.avg_time for function, timed in queue.process_time_per_fn.items()}
    slowest = max(took.values(), default=UNKNOWN)
    return CROWDED * (sum(took.get(event.fn, UNKNOWN) for event in ahead) + joining * slowest)


class Gate:
    """
    ASGI middleware.

    Args:
        demo: the Blocks whose queue is watched. folder: where uploaded files lie.
    """

    def __init__(self, app, demo, folder: str):
        self.app, self.demo, self.folder = app, demo, Path(folder)
        self.joining = 0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun, limit = False, MAX_BODY
        if is_upload := scope["path"].endswith("/upload"):
            limit = MAX_FILE + 2**16  # a form around the file; Gradio itself holds the file to MAX_FILE
        arrived, too_long = 0, Refused(413, f"the request is longer than {limit} bytes")

        async def counted():
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > limit:
                raise too_long
            return message

        async def noted(message):
            nonlocal begun
            if arrived <= limit:  # else the reader's own complaint that the body broke off
                begun = True
                await send(message)

        try:
            announced = dict(scope["headers"]).get(b"content-length", b"0")
            if not announced.isdigit() or int(announced) > limit:
                raise too_long
            if is_upload:
                make_room(self.folder, time.time())
            asks = scope["method"] == "POST" and ("/queue/join" in scope["path"] or "/call/" in scope["path"])
            if asks and (seconds := wait(self.demo._queue, self.joining)) > PROMISED:
                raise Refused(503, f"busy: an answer would take {seconds:.0f} seconds", round(seconds))
            self.joining += asks
            try:
                await self.app(scope, counted, noted)
            finally:
                self.joining -= asks
        except Refused as error:
            refused = error
        except Exception as error:  # of Gradio's: a function or session that does not exist, a visitor who left
            logging.getLogger("space").warning("%s: %s", scope["path"], str(error).split("\n")[0][:200])
            refused = Refused(400, "the request cannot be understood")
        else:
            refused = too_long if arrived > limit else None
        if refused is not None and not begun:
            await self.refuse(send, refused)

    async def refuse(self, send, refused: Refused):
        body = json.dumps({"detail": refused.detail}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if refused.retry is not None:
            headers.append((b"retry-after", str(refused.retry).encode()))
        with contextlib.suppress(OSError):  # the visitor is gone
            await send({"type": "http.response.start", "status": refused.status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
