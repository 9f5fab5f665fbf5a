"""What the demo chat model says about Tandem is true: commands, options, configuration keys and routes exist as the answers name them."""

import argparse
import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from config.loader import profile_names
from config.schema import ConfigFile
from gateway.auth import load_or_create_keys
from gateway.cli import parser
from gateway.image_request import ImageRequest
from local_models.demo.tandem_facts import Topic, load_topics
from tests.gateway.live import KEY, chat_settings, whole_gateway

TOPICS = load_topics("tandem")
by_topic = pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.about)


def test_there_are_enough_topics_each_with_phrasings_to_learn_and_to_ask() -> None:
    assert len(TOPICS) >= 120
    assert [topic.about for topic in TOPICS if len(topic.trained) < 20 or not topic.held_out] == []
    assert len({topic.about for topic in TOPICS}) == len(TOPICS)


def test_no_question_belongs_to_two_topics() -> None:
    counts = Counter(re.sub(r"[^a-z0-9]+", " ", question.lower()) for topic in TOPICS for question in topic.questions)
    assert [question for question, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("topic", [*TOPICS, *load_topics("small_talk")], ids=lambda topic: topic.about)
def test_an_answer_holds_its_facts_and_nothing_forbidden(topic: Topic) -> None:
    assert topic.facts
    assert topic.is_answered_by(topic.answer)


@by_topic
def test_every_command_of_an_answer_is_one_that_tandem_takes(topic: Topic) -> None:
    named = re.findall(r"\./tandem(?: [a-z]+(?= |$|[.,;:)]))?", topic.answer)
    assert [command for command in named if not any(known.startswith(command) for known in topic.commands)] == []
    for command in topic.commands:
        words = command.removeprefix("./tandem").split()
        if words[:1] == ["test"]:
            continue
        with pytest.raises(SystemExit) if words == ["--version"] else contextlib.nullcontext():
            options = parser().parse_args(words)
            assert getattr(options, "profile", None) in (None, *profile_names())


@by_topic
def test_every_option_of_an_answer_is_in_the_help(topic: Topic) -> None:
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", topic.answer)) - _OTHER_PROGRAMS
    assert {option for option in options if option not in _help()} == set()


@by_topic
def test_every_configuration_key_of_an_answer_is_in_the_schema(topic: Topic) -> None:
    for path in topic.config:
        assert _keys(ConfigFile, path.split(".")), path
    named = {word for word in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", topic.answer) if word in _every_key(ConfigFile)}
    assert {
        word for word in named if not any(path.endswith(f".{word}") or path == word for path in topic.config)
    } - _REQUEST_FIELDS == set()


@by_topic
def test_every_route_of_an_answer_is_listed(topic: Topic) -> None:
    named = set(re.findall(r"(?<![\w:.\d])/(?:v1/[a-z/_]+|metrics|healthz|readyz|openapi\.json)", topic.answer))
    assert {path for path in named if not any(path.rstrip("/") in route for route in topic.routes)} == set()


async def test_every_listed_route_is_served(tmp_path: Path) -> None:
    keys, _ = load_or_create_keys(tmp_path, {"TANDEM_API_KEY": KEY})
    settings = chat_settings("http://127.0.0.1:9/v1")
    async with whole_gateway(settings, tmp_path, keys=keys) as (live, _), live.http() as client:
        for method, path in sorted({(method, path) for topic in TOPICS for method, path in map(str.split, topic.routes)}):
            answer = await client.request(method, path)
            assert answer.status_code not in (404, 405), (method, path)


_OTHER_PROGRAMS = {"--reasoning-parser", "--help"}  # vLLM's, and everybody's
_REQUEST_FIELDS = {
    "top_p",
    "top_k",
    "min_p",
    *ImageRequest.model_fields,
    "api_key",
    "base_url",
    "input_modalities",
    "chat_app",
}  # also of requests, the SDK, the list; a folder


def _help() -> str:
    from gateway import cli

    return "\n".join(_texts(cli.parser()))


def _texts(command: argparse.ArgumentParser) -> Iterator[str]:
    """The help of a command and of those below it."""
    yield command.format_help()
    for action in command._actions:
        if isinstance(action.choices, dict):
            for below in action.choices.values():
                yield from _texts(below)


def _keys(model: Any, path: list[str]) -> bool:
    """Whether the schema has the path; a name or a number stands for any entry of a mapping or a list."""
    if not path:
        return True
    return any(_step(option, path) for option in _options(model))


def _step(option: Any, path: list[str]) -> bool:
    origin = get_origin(option)
    if origin is list:
        return path[0].isdigit() and _keys(get_args(option)[0], path[1:])
    if origin is dict:
        return _keys(get_args(option)[1], path[1:])
    if isinstance(option, type) and issubclass(option, BaseModel):
        field = option.model_fields.get(path[0])
        return field is not None and _keys(field.annotation, path[1:])
    return False


def _options(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [option for part in get_args(annotation) for option in _options(part)]
    return [annotation]


def _every_key(annotation: Any) -> set[str]:
    found: set[str] = set()
    for option in _options(annotation):
        if get_origin(option) in (list, dict):
            found |= _every_key(get_args(option)[-1])
        elif isinstance(option, type) and issubclass(option, BaseModel):
            found |= set(option.model_fields)
            for field in option.model_fields.values():
                found |= _every_key(field.annotation)
    return found
