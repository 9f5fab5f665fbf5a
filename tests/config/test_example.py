"""tandem.example.yaml is the reference: it loads, and shows every key of the schema with a comment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from pydantic import BaseModel

from config import loader, schema

EXAMPLE = Path(__file__).parents[2] / "tandem.example.yaml"

# Each table of the file, and a place where the example shows it.
TABLES: Mapping[tuple[str | int, ...], type[BaseModel]] = {
    (): schema.ConfigFile,
    ("models", 0): schema.ModelSpec,
    ("models", 0, "deployments", 0): schema.Deployment,
    ("models", 0, "routing"): schema.RoutingSpec,
    ("models", 0, "limits"): schema.Limits,
    ("models", 0, "sampling"): schema.ModeSampling,
    ("models", 0, "sampling", "thinking"): schema.SamplingSpec,
    ("models", 3, "image"): schema.ImageSpec,
    ("models", 0, "deployments", 0, "price"): schema.Price,
    ("upstreams", "lab"): schema.OpenAIUpstream,
    ("upstreams", "openrouter"): schema.OpenRouterUpstream,
    ("upstreams", "anthropic"): schema.LitellmUpstream,
    ("upstreams", "here"): schema.VllmUpstream,
    ("upstreams", "small"): schema.TransformersUpstream,
    ("upstreams", "pictures"): schema.DiffusersUpstream,
    ("server",): schema.ServerSpec,
    ("memory",): schema.MemorySpec,
    ("chat_app",): schema.ChatAppSpec,
    ("remote_images",): schema.RemoteImagesSpec,
    ("usage",): schema.UsageSpec,
    ("log",): schema.LogSpec,
}


def keys() -> Iterator[tuple[str | int, ...]]:
    elsewhere = (("models", 0, "image"),)  # a key that its table of TABLES cannot have
    for table, spec in TABLES.items():
        yield from ((*table, key) for key in spec.model_fields if (*table, key) not in elsewhere)


def test_every_table_of_the_schema_is_covered() -> None:
    specs = {value for value in vars(schema).values() if isinstance(value, type) and issubclass(value, BaseModel)}
    inner = {BaseModel, schema.Settings, schema.ReferenceProblem}
    assert {spec for spec in specs if not spec.__name__.startswith("_")} - inner == set(TABLES.values())


@pytest.mark.parametrize("key", list(keys()), ids=lambda key: ".".join(map(str, key)))
def test_every_key_is_shown_with_a_comment(key: tuple[str | int, ...]) -> None:
    text = EXAMPLE.read_text()
    mark = loader.parse(text, "tandem.example.yaml").marks.get(key)
    assert mark is not None, "not in tandem.example.yaml"
    assert mark.line is not None
    line, before = text.splitlines()[mark.line - 1], text.splitlines()[mark.line - 2]
    assert "# " in line or before.lstrip().startswith("# ")


@pytest.mark.parametrize("key", list(keys()), ids=lambda key: ".".join(map(str, key)))
def test_every_key_of_the_schema_is_described(key: tuple[str | int, ...]) -> None:
    description = TABLES[key[:-1]].model_fields[str(key[-1])].description
    assert description
    assert description.endswith(".")


@pytest.mark.parametrize("profile", loader.profile_names())
def test_it_loads_over_every_profile(profile: str) -> None:
    assert [model.name for model in loader.load(profile, EXAMPLE, {}).models] == [
        "qwen3.5-9b",
        "qwen3.5-9b-no-think",
        "openrouter/*",
        "draw",
    ]
