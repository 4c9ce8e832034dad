"""Counts what a judge was asked and what it marked, while lmms-eval scores.

lmms-eval takes a judge that is away, says nothing or talks prose for a mark (0, or -1 of -1 and so 100 %). Here a
document is judged when every question about it, after all retries, got a reply of the form that its prompt asks for.
Seen are the providers of `lmms_eval.llm_judge` and, for tasks that call a judge themselves, failing HTTP requests.
"""

import contextlib
import functools
import re
import threading
from unittest.mock import patch

import httpx
import requests
from lmms_eval.llm_judge.factory import ProviderFactory

MARK = r"(?:10|\d)(?:\.\d+)?"
FORMS = {  # words of a prompt -> the reply it asks for
    "# Strict Output format": r"\W*(?:(?:score|answer|judge?ment)\W+)?(?:[01]|yes|no)\W*",
    "only two values": rf"{MARK}[\s,;]+{MARK}[ .]*(?:\n.*)?",
    "the last space of the correctness score": r"(?:0(?:\.\d+)?|1(?:\.0+)?)(?:\s.*)?",
}
scored = threading.local()  # .replies: question -> whether it got a usable reply, of what this thread scores


def replies() -> dict:
    return getattr(scored, "replies", {})


def usable(question: str, reply: str) -> bool:
    forms = [form for words, form in FORMS.items() if words in question]
    text = reply.strip().lower()
    return bool(text) and all(re.fullmatch(form, text, re.DOTALL) for form in forms)


def heard(evaluate):
    """A provider's `evaluate`, its replies noted."""

    @functools.wraps(evaluate)
    def wrapped(server, request):
        noted, question = replies(), str(request.messages)
        noted[question] = False
        response = evaluate(server, request)
        noted[question] = response.success and usable(question, response.content or "")
        return response

    return wrapped


def sent(send):
    """A client's `send`, whether each request got an answer noted."""

    @functools.wraps(send)
    def wrapped(client, request, **options):
        noted = replies() if request.method == "POST" else {}
        question = str(request.url), getattr(request, "content", getattr(request, "body", ""))
        noted[question] = False
        response = send(client, request, **options)
        noted[question] = response.status_code < 400
        return response

    return wrapped


def judged(process_results, tally: list):
    """A task's `process_results` that adds to `tally`, for each document with a judge, whether it was judged."""

    def wrapped(doc, results):
        before, scored.replies = replies(), {}
        try:
            metrics = process_results(doc, results)
            marks = [value.get("scores") for value in metrics.values() if isinstance(value, dict)]
            unmarked = any(-1 in mark for mark in marks if isinstance(mark, list | tuple))  # no judge could be made
            if scored.replies or unmarked:
                tally.append(all(scored.replies.values()) and not unmarked)
            return metrics
        finally:
            scored.replies = before

    return wrapped


@contextlib.contextmanager
def counted(tasks: dict):
    """Yields {task: {"asked", "judged", "failed"}}, filled at the end: documents of tasks with a judge."""
    counts: dict = {}
    tallies: dict = {name: [] for name in tasks}
    scored.replies = {}  # here, in the thread that aggregates
    providers = {one for kind in ProviderFactory._provider_classes.values() for one in kind.__mro__}
    with contextlib.ExitStack() as stack:
        for owner in providers:
            if "evaluate" in vars(owner) and not getattr(owner.evaluate, "__isabstractmethod__", False):
                stack.enter_context(patch.object(owner, "evaluate", heard(owner.evaluate)))
        for owner in (httpx.Client, requests.Session):
            stack.enter_context(patch.object(owner, "send", sent(owner.send)))
        for name, task in tasks.items():
            stack.enter_context(patch.object(task, "process_results", judged(task.process_results, tallies[name])))
        yield counts
    for name, tally in tallies.items():
        tally += scored.replies.values()
        if tally:
            counts[name] = {"asked": len(tally), "judged": sum(tally), "failed": len(tally) - sum(tally)}
