"""Fusion settings in the wrong place of a request are refused: vLLM ignores fields that it does not know."""

import json

from .requests import ARGUMENTS


class MisplacedSettings:
    """Middleware (ASGI) before vLLM's server: 400 where a request has a fusion setting beside its `messages`."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].startswith("/v1/"):
            return await self.app(scope, receive, send)
        messages, body = [], b""
        while not messages or messages[-1].get("more_body"):
            messages.append(await receive())
            body += messages[-1].get("body", b"")
        if name := _misplaced(body):
            message = (
                f"{name!r} stands beside the request's other fields, where it changes nothing: put it into vllm_xargs"
            )
            error = {"error": {"message": message, "type": "BadRequestError", "param": name, "code": 400}}
            await send(
                {"type": "http.response.start", "status": 400, "headers": [(b"content-type", b"application/json")]}
            )
            return await send({"type": "http.response.body", "body": json.dumps(error).encode()})

        async def again():
            return messages.pop(0) if messages else await receive()

        await self.app(scope, again, send)


def _misplaced(body: bytes) -> str | None:
    try:
        fields = json.loads(body)
    except ValueError:  # the server says what is wrong with it
        return None
    return next((name for name in ARGUMENTS if name in fields), None) if isinstance(fields, dict) else None
