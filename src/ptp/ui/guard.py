"""What the page's server lets in: small requests, to run events and nothing else; and where the page may load from."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .uploads import MAX_BYTES

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY = 4 * MAX_BYTES // 3 + 1_000_000
"""Bytes of a request: a picture in base64, and the page's other values."""
POSTED = ("/queue/join", "/cancel", "/reset")
"""What the page posts to. Gradio has more: its uploads and deep links are files on disk."""
NOT_READ = ("/deep_link", "/upload_progress", "/monitoring")
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'"
HEADERS = ((b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer"), (b"cache-control", b"no-store"))
"""The page loads nothing from elsewhere, and the browser keeps nothing of it."""


class Guard:
    """ASGI middleware around Gradio."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer 403 to what the page does not use and 413 to what is too large; pass the rest on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        reading, path = scope["method"] in ("GET", "HEAD", "OPTIONS"), scope["path"]
        if (not reading and not path.endswith(POSTED)) or (reading and any(part in path for part in NOT_READ)):
            await _refuse(send, 403, "This page takes no files and no such requests.")
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY:
            await _refuse(send, 413, f"A request may have at most {MAX_BODY:,} bytes.")
            return
        body = b""
        if not reading:
            more = True
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    return  # gone
                body, more = body + message.get("body", b""), message.get("more_body", False)
                if len(body) > MAX_BODY:
                    await _refuse(send, 413, f"A request may have at most {MAX_BODY:,} bytes.")
                    return
        given = reading

        async def whole() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in HEADERS}
                kept = [(name, value) for name, value in message.get("headers", []) if name.lower() not in names]
                message = {**message, "headers": [*kept, *HEADERS]}
            await send(message)

        await self.app(scope, whole, with_headers)


async def _refuse(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
