"""What litellm may do when it is loaded, and what of its documents is the provider's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from adapters.litellm_bridge import chunk_document, completion_document


def test_litellm_is_loaded_without_any_look_at_the_network() -> None:
    code = """
import socket, sys
def refuse(*args, **kwargs): raise AssertionError(f"a look at the network: {args}")
socket.getaddrinfo = socket.socket.connect = refuse
import adapters.litellm_bridge as bridge
from adapters.base import Timeouts
assert "litellm" not in sys.modules
bridge._load(bridge.LitellmSpec("lab", Timeouts()), "anthropic/claude-sonnet-4-5")
import litellm, threading
assert litellm.get_model_info("claude-sonnet-4-5")["input_cost_per_token"] > 0
assert not litellm.success_callback and not litellm.callbacks
assert [thread.name for thread in threading.enumerate()] == ["MainThread"], threading.enumerate()
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_litellms_own_guess_of_the_cost_is_not_the_providers() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "cost": 0.5}
    guessed, told = (chunk_document({"id": "1", "choices": [], "usage": usage}, cost) for cost in (None, 0.25))
    assert guessed is not None
    assert told is not None
    assert ("cost" in guessed["usage"], told["usage"]["cost"]) == (False, 0.25)
    assert chunk_document({"id": "1", "choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}}, None) is None


def test_a_message_without_text_says_so() -> None:
    message = {"role": "assistant", "tool_calls": [{"id": "1"}], "provider_specific_fields": {}}
    document = completion_document({"id": "1", "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]})
    assert document["choices"][0]["message"] == {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
