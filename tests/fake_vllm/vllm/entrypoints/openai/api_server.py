"""A server with vLLM's command line and vLLM's manners, for tests on a machine without it. Standard library only.

Its manners: /health, a key by environment, `reasoning` (not `reasoning_content`), integer error codes, usage in a last chunk with
no choices, and thinking decided by `chat_template_kwargs.enable_thinking` alone. The prompt "die" ends the process in mid-answer; "engine
dies" and "engine is dead" (before any content) end the engine only, as EngineDeadError does: the socket stays open. "abort" ends an answer
as a shutdown does. The model "no/kernels" kills the engine with the first request.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_MESSAGE = "EngineCore encountered an issue. See stack trace (above) for the root cause."
ENGINE_IS_DEAD = {"error": {"message": _MESSAGE, "type": "InternalServerError", "param": None, "code": 500}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model = ""
    computes = True
    dead = False

    def do_GET(self) -> None:
        if self.path == "/health":
            self.reply(503 if Handler.dead else 200, {})
        else:
            self.reply(200, {"object": "list", "data": [{"id": self.model, "object": "model"}]})

    def do_POST(self) -> None:
        asked: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers.get("authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
            self.reply(401, {"error": "Unauthorized"})
        elif asked["model"] != self.model:
            message = f"The model `{asked['model']}` does not exist."
            self.reply(404, {"error": {"message": message, "type": "NotFoundError", "param": "model", "code": 404}})
        elif self.path == "/v1/completions":
            self.first_token()
        elif {"reasoning", "reasoning_effort", "enable_thinking"} & asked.keys():
            self.reply(400, {"error": {"message": "not a vLLM field", "type": "BadRequestError", "param": None, "code": 400}})
        else:
            self.answer(asked)

    def first_token(self) -> None:
        if self.computes:
            self.reply(200, {"object": "text_completion", "choices": [{"index": 0, "text": " ", "finish_reason": "length"}]})
            return
        print("(Worker pid=1) ERROR 11-24 18:52:38 [x.py:1] RuntimeError: Unexpected head dim size, 32", file=sys.stderr, flush=True)
        Handler.dead = True
        self.reply(500, ENGINE_IS_DEAD)

    def answer(self, asked: dict[str, Any]) -> None:
        thinks = asked.get("chat_template_kwargs", {}).get("enable_thinking", True)
        prompt = asked["messages"][-1]["content"]
        reasoning = "The user greets." if thinks else None
        usage = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
        head = {"id": "chatcmpl-1", "created": 1, "model": self.model}
        finish = "abort" if prompt == "abort" else "stop"
        if not asked.get("stream"):
            if prompt.startswith("engine"):
                Handler.dead = True
                self.reply(500, ENGINE_IS_DEAD)
                return
            message: dict[str, Any] = {"role": "assistant", "content": "Hello there", "reasoning": reasoning, "tool_calls": []}
            choice = {"index": 0, "message": message, "finish_reason": finish}
            self.reply(200, {**head, "object": "chat.completion", "choices": [choice], "usage": usage})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        if prompt == "engine is dead":
            self.end_with_the_engine()
            return
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"reasoning": reasoning}] if reasoning else []
        for delta in [*deltas, {"content": "Hello"}, {"content": " there"}]:
            self.event({**head, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
            if prompt == "die" and "content" in delta and delta["content"]:
                os._exit(1)
        if prompt in ("engine dies", "abort"):
            time.sleep(0.1)  # or the text is in one read with what follows, and counts as not begun
        if prompt == "engine dies":
            self.end_with_the_engine()
            return
        self.event(
            {**head, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": finish}]}
        )
        if asked.get("stream_options", {}).get("include_usage"):
            self.event({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def end_with_the_engine(self) -> None:
        Handler.dead = True
        self.event(ENGINE_IS_DEAD)
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def event(self, document: dict[str, Any]) -> None:
        self.chunk(b"data: " + json.dumps(document).encode() + b"\n\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def reply(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    for flag in (
        "--model",
        "--served-model-name",
        "--host",
        "--port",
        "--reasoning-parser",
        "--tool-call-parser",
        "--allowed-media-domains",
    ):
        parser.add_argument(flag)
    parser.add_argument("--enable-auto-tool-choice", action="store_true")
    parser.add_argument("--disable-uvicorn-access-log", action="store_true")
    options = parser.parse_args()
    Handler.model, Handler.computes = options.served_model_name, options.model != "no/kernels"
    ThreadingHTTPServer((options.host, int(options.port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
