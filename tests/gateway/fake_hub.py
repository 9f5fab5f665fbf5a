"""As much of the Hub as a download needs: one model, `owner/name`, over real HTTP. Keeps the requests; can cut the first answer short."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40
FILES: Mapping[str, bytes] = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": bytes(200_000),
    "model.fp16.safetensors": b"the same once more",
    "pytorch_model.bin": b"could run code",
}


class FakeHub(ThreadingHTTPServer):
    """cut: end the first download of the weights in its middle."""

    daemon_threads = True

    def __init__(self, cut: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cut = cut
        self.gets: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        return

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        name = path.rsplit("/", 1)[-1]
        if path.startswith("/api/models/owner/name/tree/"):
            listing = [{"type": "file", "path": name, "size": len(data), "oid": "b" * 40} for name, data in FILES.items()]
            self._send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"}, with_body)
        elif path.startswith("/api/models/owner/name"):
            model = {"id": "owner/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
            self._send(200, json.dumps(model).encode(), {"Content-Type": "application/json"}, with_body)
        elif path.startswith("/owner/name/") and name in FILES:
            self._send_file(name, with_body)
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, with_body)

    def _send_file(self, name: str, with_body: bool) -> None:
        data, given = FILES[name], self.headers["Range"]
        start = int(given.removeprefix("bytes=").partition("-")[0]) if given else 0
        headers = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if given:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if with_body:
            self.server.gets.append(name)
        self._send(206 if given else 200, data[start:], headers, with_body)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body and self.server.cut and len(body) == 200_000:
            self.server.cut = False
            self.wfile.write(body[:100_000])
            self.close_connection = True
        elif with_body:
            self.wfile.write(body)


@contextmanager
def fake_hub(*, cut: bool = False) -> Iterator[FakeHub]:
    """A Hub that runs until the end of the block."""
    with FakeHub(cut) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
