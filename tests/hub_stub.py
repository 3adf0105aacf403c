"""The part of the Hub that an upload talks to, on this machine: repositories are dictionaries of bytes."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "dummy"
OID = "0123456789abcdef0123456789abcdef01234567"


class HubStub(ThreadingHTTPServer):
    """`repositories`: (type, id) -> {path: bytes}; `commits`: (type, id, summary); `created`: what was asked for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.commits, self.created, self.large_files = {}, [], [], {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that uploads here."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }


@contextmanager
def serve_hub():
    """Yields a running [`HubStub`]."""
    with HubStub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self._body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid username or password."}, 401)
        for pattern, action in _POSTS.items():
            if match := re.fullmatch(pattern, self.path.split("?")[0]):
                return action(self, body, **match.groupdict())
        return self._answer({"error": f"no route {self.path}"}, 404)

    def do_PUT(self):
        """A large file; its address holds the sha256 that was announced."""
        body, oid = self._body(), self.path.rsplit("/", 1)[-1]
        if hashlib.sha256(body).hexdigest() != oid:
            return self._answer({"error": "other bytes than announced"}, 400)
        self.server.large_files[oid] = body
        return self._answer({})

    def validate_yaml(self, body):
        text = json.loads(body)["content"]
        self._answer({"errors": [], "warnings": []} if text.startswith("---\n") else {"errors": []})

    def create(self, body):
        request = json.loads(body)
        kind, repo_id = request.get("type", "model"), f"{request['organization']}/{request['name']}"
        self.server.created.append(request)
        is_new = (kind, repo_id) not in self.server.repositories
        self.server.repositories.setdefault((kind, repo_id), {})
        prefix = "spaces/" if kind == "space" else ""
        self._answer({"url": f"{self.server.url}/{prefix}{repo_id}"}, 200 if is_new else 409)

    def preupload(self, body, kind, repo_id):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".wav")) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._answer({"files": files})

    def announce_large_files(self, body, prefix, repo_id):
        objects = [
            wanted
            | {
                "actions": {
                    "upload": {"href": f"{self.server.url}/large/{wanted['oid']}"},
                    "verify": {"href": f"{self.server.url}/verify"},
                }
            }
            for wanted in json.loads(body)["objects"]
        ]
        self._answer({"transfer": "basic", "objects": objects})

    def verify(self, body):
        wanted = json.loads(body)
        is_complete = len(self.server.large_files.get(wanted["oid"], b"")) == wanted["size"]
        self._answer({}, 200 if is_complete else 404)

    def commit(self, body, kind, repo_id):
        files = self.server.repositories[kind, repo_id]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.server.commits.append((kind, repo_id, value["summary"]))
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large_files[value["oid"]]
        url = f"{self.server.url}/{repo_id}/commit/{OID}"
        self._answer({"success": True, "commitOid": OID, "commitUrl": url, "pullRequestUrl": None})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, content: dict, status: int = 200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *arguments):
        """Say nothing."""


_POSTS = {
    "/api/validate-yaml": _Handler.validate_yaml,
    "/api/repos/create": _Handler.create,
    r"/api/(?P<kind>model|space)s/(?P<repo_id>[^/]+/[^/]+)/preupload/main": _Handler.preupload,
    r"/(?P<prefix>spaces/)?(?P<repo_id>[^/]+/[^/]+)\.git/info/lfs/objects/batch": _Handler.announce_large_files,
    "/verify": _Handler.verify,
    r"/api/(?P<kind>model|space)s/(?P<repo_id>[^/]+/[^/]+)/commit/main": _Handler.commit,
}
