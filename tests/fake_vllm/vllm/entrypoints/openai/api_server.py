"""A server with vLLM's command line and vLLM's manners, for tests on a machine without it. Standard library only.

Its manners: /health, a key by environment, `reasoning` (not `reasoning_content`), integer error codes, usage in a last chunk with
no choices, and thinking decided by `chat_template_kwargs.enable_thinking` alone. The prompt "die" ends the process in mid-answer.
"""

from __future__ import annotations

import argparse
import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model = ""

    def do_GET(self) -> None:
        self.reply(200, {} if self.path == "/health" else {"object": "list", "data": [{"id": self.model, "object": "model"}]})

    def do_POST(self) -> None:
        asked: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers.get("authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
            self.reply(401, {"error": "Unauthorized"})
        elif asked["model"] != self.model:
            message = f"The model `{asked['model']}` does not exist."
            self.reply(404, {"error": {"message": message, "type": "NotFoundError", "param": "model", "code": 404}})
        elif {"reasoning", "reasoning_effort", "enable_thinking"} & asked.keys():
            self.reply(400, {"error": {"message": "not a vLLM field", "type": "BadRequestError", "param": None, "code": 400}})
        else:
            self.answer(asked)

    def answer(self, asked: dict[str, Any]) -> None:
        thinks = asked.get("chat_template_kwargs", {}).get("enable_thinking", True)
        prompt = asked["messages"][-1]["content"]
        reasoning = "The user greets." if thinks else None
        usage = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
        head = {"id": "chatcmpl-1", "created": 1, "model": self.model}
        if not asked.get("stream"):
            message: dict[str, Any] = {"role": "assistant", "content": "Hello there", "reasoning": reasoning, "tool_calls": []}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self.reply(200, {**head, "object": "chat.completion", "choices": [choice], "usage": usage})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"reasoning": reasoning}] if reasoning else []
        for delta in [*deltas, {"content": "Hello"}, {"content": " there"}]:
            self.event({**head, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
            if prompt == "die" and "content" in delta and delta["content"]:
                os._exit(1)
        self.event(
            {**head, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}]}
        )
        if asked.get("stream_options", {}).get("include_usage"):
            self.event({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
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
    for flag in ("--model", "--served-model-name", "--host", "--port", "--reasoning-parser", "--tool-call-parser", "--allowed-media-domains"):
        parser.add_argument(flag)
    parser.add_argument("--enable-auto-tool-choice", action="store_true")
    options = parser.parse_args()
    Handler.model = options.served_model_name
    ThreadingHTTPServer((options.host, int(options.port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
