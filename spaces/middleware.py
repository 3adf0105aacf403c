"""What the server of the page refuses before Gradio: uploads over a limit, and endpoints that are not public."""

import json
import os
import re
import tempfile
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

MAX_REQUEST_BYTES = 64 * 2**20
MAX_KEPT_BYTES = 2**30
_CALL = re.compile(r"/(?:call|run|api)/(?:v2/)?([^/]+)")
_BY_NUMBER = "predict"

Scope = dict
Receive = Callable[[], Awaitable[dict]]
Send = Callable[[dict], Awaitable[None]]


class UploadLimit:
    """ASGI middleware that answers an upload over the limit with status 413 and the reason.

    Args:
        app: the application.
        folder (`Path`, *optional*): where uploads are kept. Default: that of Gradio.
        max_request_bytes (`int`, default 64 MiB): of one request, all files together.
        max_kept_bytes (`int`, default 1 GiB): of all files that are kept; older ones are deleted after an hour.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        folder: Path | None = None,
        max_request_bytes: int = MAX_REQUEST_BYTES,
        max_kept_bytes: int = MAX_KEPT_BYTES,
    ):
        self.app, self.max_request_bytes, self.max_kept_bytes = app, max_request_bytes, max_kept_bytes
        default = os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir()) / "gradio"
        self.folder = Path(default if folder is None else folder)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        is_upload = scope["type"] == "http" and scope["method"] == "POST" and scope["path"].endswith("/upload")
        if not is_upload:
            await self.app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_request_bytes:
            await _refuse(send, f"these files are larger than {self.max_request_bytes >> 20} MB together")
        elif bytes_below(self.folder) + int(length or 0) > self.max_kept_bytes:
            await _refuse(send, "the server keeps as many recordings as it can; try again in a while")
        else:
            await self._pass_on(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an upload on and stop it where it is longer than it stated, or stated nothing."""
        received = 0

        async def counted() -> dict:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_request_bytes:
                return {"type": "http.disconnect"}
            return message

        await self.app(scope, counted, send)


class PublicEndpoints:
    """ASGI middleware that answers calls by name of other than the public endpoints with status 404.

    The page itself calls its handlers by number, with the session that it was given.

    Args:
        app: the application.
        names: of the public endpoints, without a slash.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], names: Collection[str]):
        self.app, self.names = app, frozenset(names) | {_BY_NUMBER}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        called = _CALL.search(scope["path"]) if scope["type"] == "http" else None
        if called is None or called[1] in self.names:
            await self.app(scope, receive, send)
        else:
            public = ", ".join(sorted(self.names - {_BY_NUMBER}))
            await _refuse(send, f"there is no endpoint {called[1]!r}; expected one of {public}", status=404)


def bytes_below(folder: Path) -> int:
    """Return the size of all files below a folder; those that vanish meanwhile do not count."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


async def _refuse(send: Send, reason: str, status: int = 413) -> None:
    body = json.dumps({"detail": f"This did not work: {reason}."}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
