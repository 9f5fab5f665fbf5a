"""One configuration out of a profile, a user's file and the environment.

Lowest first: the profile, the user's file over it, `TANDEM_*` variables over both. Mappings merge key by key, with two exceptions that
keep the result readable: a list replaces the list below it (so a file that names `models` says all models there are), and an upstream
that states its `kind` replaces the profile's upstream of that name. Whatever is wrong becomes a `ConfigError` whose lines start with
file and line. Values may be secrets: an error shows a value only where no secret can stand.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from config import schema
from config.schema import ConfigFile, Settings

Location: TypeAlias = tuple[str | int, ...]
Value: TypeAlias = "str | int | float | bool | list[Value] | dict[str, Value] | None"

PROFILES = Path(__file__).parent / "profiles"
DEFAULT_PROFILE = "demo"
CONFIG_FILE_NAME = "tandem.yaml"
ENVIRONMENT: Mapping[str, tuple[str, str]] = {
    "TANDEM_HOST": ("server", "host"),
    "TANDEM_PORT": ("server", "port"),
    "TANDEM_MAX_BODY_BYTES": ("server", "max_body_bytes"),
    "TANDEM_CHAT_PORT": ("chat_app", "port"),
}

_MAX_BYTES = 1024 * 1024
_MAX_DEPTH = 20
_MAX_NODES = 50_000
_SHOWN_ERRORS = 8
_UPSTREAM_KINDS: Mapping[str, type[BaseModel]] = {
    "openai": schema.OpenAIUpstream,
    "openrouter": schema.OpenRouterUpstream,
    "litellm": schema.LitellmUpstream,
    "vllm": schema.VllmUpstream,
    "transformers": schema.TransformersUpstream,
    "diffusers": schema.DiffusersUpstream,
}
_REFERENCE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(:-([^}]*))?\}|\$\{")


class ConfigError(Exception):
    """A configuration that cannot be used; the message is ready to print."""


@dataclass(frozen=True)
class Mark:
    """Where a value was written."""

    source: str
    line: int | None
    directory: Path | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass
class Document:
    """Plain data, and the mark of every location in it."""

    data: dict[str, Value]
    marks: dict[Location, Mark] = field(default_factory=dict)

    def mark(self, location: Location) -> Mark:
        """Mark of this location, or of the nearest one around it."""
        while location and location not in self.marks:
            location = location[:-1]
        return self.marks[location]


@dataclass(frozen=True)
class _Unset:
    """A reference to a variable that is not set."""

    variable: str


def load(profile: str | None, config_file: Path | None, environ: Mapping[str, str]) -> Settings:
    """The configuration of this profile (None: demo), this file (None: none) and these variables. Raises ConfigError."""
    name = profile or DEFAULT_PROFILE
    document = _read(profile_path(name), f"profile {name}")
    sources = [f"profile {name}"]
    if config_file is not None:
        document = _merge(document, _read(config_file, str(config_file)))
        sources.append(str(config_file))
    sources.extend(_apply_environment(document, environ))
    unset_keys = _resolve_references(document, environ)
    _resolve_paths(document)
    _validate(document)
    found = {"profile": name, "sources": sources, "unset_keys": unset_keys}
    return Settings.model_validate({**document.data, **found})


def profile_names() -> list[str]:
    """The profiles there are."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def profile_path(name: str) -> Path:
    """File of a profile. Raises ConfigError."""
    names = profile_names()
    if name not in names:
        raise ConfigError(f"unknown profile '{name}'{_did_you_mean(name, names)}; known profiles: {', '.join(names)}")
    return PROFILES / f"{name}.yaml"


def find_config_file(given: Path | None, directory: Path) -> Path | None:
    """The file asked for, else tandem.yaml in this directory, else None. Raises ConfigError if the one asked for is not there."""
    if given is not None:
        if not given.exists():
            raise ConfigError(f"{given}: no such file; name an existing one with --config")
        return given
    path = directory / CONFIG_FILE_NAME
    return Path(CONFIG_FILE_NAME) if path.exists() else None


# --- reading -------------------------------------------------------------------------------------------------------------------------


def parse(text: str, source: str, directory: Path | None = None) -> Document:
    """Data and marks of a YAML text. Raises ConfigError."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f":{mark.line + 1}"
        raise ConfigError(f"{source}{line}: not valid YAML: {_syntax_problem(error)}") from error
    except yaml.reader.ReaderError as error:
        line_number = text.count("\n", 0, int(error.position)) + 1
        raise ConfigError(f"{source}:{line_number}: not valid YAML: the character U+{error.character:04X} is not allowed") from error
    top = Mark(source, 1, directory)
    if root is None:
        return Document({}, {(): top})
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{source}:{root.start_mark.line + 1}: must be a mapping (key: value) with 'models' and 'upstreams'")
    reader = _NodeReader(source, directory)
    data = reader.mapping(root, ())
    return Document(data, {**reader.marks, (): top})


def _syntax_problem(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or "unreadable"
    if "'\\t'" in problem:
        return "a tab indents this line; use spaces"
    context = f"{error.context}, " if error.context and error.context != problem else ""
    return f"{context}{problem}"


def _read(path: Path, source: str) -> Document:
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{source}: cannot read it: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{source}: larger than {_MAX_BYTES} bytes; this is not a Tandem configuration")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{source}:{line}: not UTF-8 text (byte 0x{content[error.start]:02x}); save the file as UTF-8") from error
    return parse(text, source, path.resolve().parent)


class _NodeReader:
    """Turns YAML nodes into data, and notes each line on the way."""

    def __init__(self, source: str, directory: Path | None) -> None:
        self.marks: dict[Location, Mark] = {}
        self._source = source
        self._directory = directory
        self._constructor = yaml.SafeLoader("")

    def mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Value]:
        data: dict[str, Value] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            here = (*location, key)
            if key in data:
                first = self.marks[here].line
                raise self._error(key_node, f"key '{key}' appears twice (first in line {first})")
            self._note(here, key_node)
            data[key] = self._value(value_node, here)
        return data

    def _value(self, node: yaml.Node, location: Location) -> Value:
        if len(location) > _MAX_DEPTH or len(self.marks) > _MAX_NODES:
            raise self._error(node, "nested too deeply or too long; this is not a Tandem configuration")
        if isinstance(node, yaml.MappingNode) and node.tag.endswith(":map"):
            return self.mapping(node, location)
        if isinstance(node, yaml.SequenceNode) and node.tag.endswith(":seq"):
            items: list[Value] = []
            for index, item in enumerate(node.value):
                self._note((*location, index), item)
                items.append(self._value(item, (*location, index)))
            return items
        try:
            value = self._constructor.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            raise self._error(node, "cannot read this value; put quotes around it") from error
        # Dates and the like: YAML guesses, the schema wants the text.
        return value if value is None or isinstance(value, str | int | float | bool) else str(node.value)

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, "a key must be text")
        if node.tag.endswith(":merge"):
            raise self._error(node, "merge keys (<<) are not supported; write the keys out")
        return str(node.value)

    def _note(self, location: Location, node: yaml.Node) -> None:
        self.marks[location] = Mark(self._source, node.start_mark.line + 1, self._directory)

    def _error(self, node: yaml.Node, message: str) -> ConfigError:
        return ConfigError(f"{self._source}:{node.start_mark.line + 1}: {message}")


# --- merging -------------------------------------------------------------------------------------------------------------------------


def _merge(below: Document, above: Document) -> Document:
    marks = dict(below.marks)
    data = _merge_mappings(below.data, above.data, (), marks)
    return Document(data, {**marks, **above.marks})


def _merge_mappings(below: dict[str, Value], above: dict[str, Value], location: Location, marks: dict[Location, Mark]) -> dict[str, Value]:
    merged = dict(below)
    for key, value in above.items():
        here = (*location, key)
        old = below.get(key)
        states_kind = location == ("upstreams",) and isinstance(value, dict) and "kind" in value
        if isinstance(old, dict) and isinstance(value, dict) and not states_kind:
            merged[key] = _merge_mappings(old, value, here, marks)
            continue
        merged[key] = value
        for stale in [known for known in marks if known[: len(here)] == here]:
            del marks[stale]
    return merged


def _apply_environment(document: Document, environ: Mapping[str, str]) -> list[str]:
    """Put the TANDEM_* variables over the document; their names."""
    used: list[str] = []
    for variable, (table, key) in ((name, location) for name, location in ENVIRONMENT.items() if environ.get(name)):
        section = document.data.get(table)
        if section is None:
            section = document.data[table] = {}
        if not isinstance(section, dict):  # the file is wrong there; validation says so, with its line
            continue
        section[key] = environ[variable]
        document.marks[(table, key)] = Mark(variable, None)
        used.append(variable)
    return used


# --- references and paths ------------------------------------------------------------------------------------------------------------


def _resolve_references(document: Document, environ: Mapping[str, str]) -> dict[str, str]:
    """Replace every ${VARIABLE} in place; upstreams whose api_key names an unset one, with its name."""
    unset_keys: dict[str, str] = {}
    for name, spec in _upstreams(document):
        if spec.get("kind") == "openrouter":
            spec.setdefault("api_key", "${OPENROUTER_API_KEY}")
        key = spec.get("api_key")
        if isinstance(key, str):
            resolved = _expand(key, environ, document.mark(("upstreams", name, "api_key")))
            if isinstance(resolved, _Unset):
                unset_keys[name] = resolved.variable
            spec["api_key"] = None if isinstance(resolved, _Unset) or not resolved else resolved
    document.data = _resolve_mapping(document.data, (), document, environ)
    return unset_keys


def _upstreams(document: Document) -> Iterable[tuple[str, dict[str, Value]]]:
    upstreams = document.data.get("upstreams")
    if isinstance(upstreams, dict):
        for name, spec in upstreams.items():
            if isinstance(spec, dict):
                yield name, spec


def _resolve_mapping(data: dict[str, Value], location: Location, document: Document, environ: Mapping[str, str]) -> dict[str, Value]:
    # An api_key is already resolved, and what it resolved to is not read for references again.
    is_upstream = len(location) == 2 and location[0] == "upstreams"
    return {
        key: value if is_upstream and key == "api_key" else _resolve(value, (*location, key), document, environ)
        for key, value in data.items()
    }


def _resolve(value: Value, location: Location, document: Document, environ: Mapping[str, str]) -> Value:
    if isinstance(value, dict):
        return _resolve_mapping(value, location, document, environ)
    if isinstance(value, list):
        return [_resolve(item, (*location, index), document, environ) for index, item in enumerate(value)]
    mark = document.mark(location)
    if not isinstance(value, str) or mark.line is None:  # a variable's own text is taken as it is
        return value
    resolved = _expand(value, environ, mark)
    if isinstance(resolved, _Unset):
        name = resolved.variable
        raise ConfigError(f"{mark}: {_dotted(location)}: {name} is not set; export {name}=... or write ${{{name}:-a default}}")
    return resolved


def _expand(text: str, environ: Mapping[str, str], mark: Mark) -> str | _Unset:
    """The text with its references replaced. An empty variable counts as not set; $${ stands for a plain ${."""
    pieces: list[str] = []
    end = 0
    for match in _REFERENCE.finditer(text):
        pieces.append(text[end : match.start()])
        end = match.end()
        variable, has_default, default = match.groups()
        if match[0] == "$${":
            pieces.append("${")
        elif variable is None:
            raise ConfigError(f"{mark}: a reference looks like ${{NAME}} or ${{NAME:-default}}; write $${{ for a plain ${{")
        elif environ.get(variable):
            pieces.append(environ[variable])
        elif has_default:
            pieces.append(default)
        else:
            return _Unset(variable)
    return "".join(pieces) + text[end:]


def _resolve_paths(document: Document) -> None:
    """Make relative paths absolute, from the directory of the file they stand in."""
    for name, spec in _upstreams(document):
        python = spec.get("python")
        if isinstance(python, str) and "/" in python:
            spec["python"] = _absolute(python, document.mark(("upstreams", name, "python")))
        for key in ("ca_file", "client_cert", "client_key"):
            path = spec.get(key)
            if isinstance(path, str):
                spec[key] = _absolute(path, document.mark(("upstreams", name, key)))
    models = document.data.get("models")
    for index, model in enumerate(models if isinstance(models, list) else []):
        deployments = model.get("deployments") if isinstance(model, dict) else None
        for position, deployment in enumerate(deployments if isinstance(deployments, list) else []):
            target = deployment.get("model") if isinstance(deployment, dict) else None
            if isinstance(deployment, dict) and isinstance(target, str) and target.startswith(("./", "../", "~/")):
                deployment["model"] = _absolute(target, document.mark(("models", index, "deployments", position, "model")))


def _absolute(text: str, mark: Mark) -> str:
    path = Path(text).expanduser()
    # No resolve(): the python of a virtual environment is a symlink that must stay one.
    return str(path) if mark.directory is None else os.path.normpath(mark.directory / path)


# --- validation ----------------------------------------------------------------------------------------------------------------------


def _validate(document: Document) -> None:
    try:
        config = ConfigFile.model_validate(document.data)
    except ValidationError as error:
        raise _listed(
            [_explain(details, document) for details in _without_consequences(error.errors(include_url=False), document)]
        ) from None
    problems = schema.reference_problems(config)
    if problems:
        raise _listed([(document.mark(problem.location), problem.message) for problem in problems])


def _without_consequences(errors: list[ErrorDetails], document: Document) -> list[ErrorDetails]:
    """Without those keys reported missing that are there, misspelt."""
    misspelt: set[Location] = set()
    for details in errors:
        if details["type"] == "extra_forbidden":
            location = _plain_location(details["loc"], document)
            meant = difflib.get_close_matches(str(location[-1]).lower(), _keys_at(location[:-1], document), n=1)
            misspelt.update((*location[:-1], key) for key in meant)
    return [details for details in errors if details["type"] != "missing" or _plain_location(details["loc"], document) not in misspelt]


def _listed(problems: list[tuple[Mark, str]]) -> ConfigError:
    ordered = sorted(problems, key=lambda problem: (problem[0].source, problem[0].line or 0))
    lines = [f"{mark}: {message}" for mark, message in ordered[:_SHOWN_ERRORS]]
    if len(ordered) > _SHOWN_ERRORS:
        lines.append(f"... and {len(ordered) - _SHOWN_ERRORS} more")
    return ConfigError("\n".join(lines))


def _explain(details: ErrorDetails, document: Document) -> tuple[Mark, str]:
    location = _plain_location(details["loc"], document)
    kind = details["type"]
    context = details.get("ctx", {})
    if kind == "extra_forbidden":
        return document.mark(location), _unknown_key(location, document)
    if kind == "missing":
        parent = f" in {_dotted(location[:-1])}" if location[:-1] else ""
        return document.mark(location[:-1]), f"missing key '{location[-1]}'{parent}"
    if kind == "union_tag_not_found":
        return document.mark(location), f"missing key 'kind' in {_dotted(location)} (one of {', '.join(_UPSTREAM_KINDS)})"
    if kind == "union_tag_invalid":
        location = (*location, "kind")
        value = str(_value_at(document, location))
        known = ", ".join(_UPSTREAM_KINDS)
        return document.mark(location), f"unknown kind '{value}'{_did_you_mean(value, _UPSTREAM_KINDS)}; known kinds: {known}"
    if kind == "value_error":
        message = str(context.get("error", details["msg"]))
        return document.mark(location), f"{_dotted(location)}: {message}"
    return document.mark(location), f"{_dotted(location)}: {_requirement(kind, context, details['msg'])}{_shown(document, location)}"


def _plain_location(location: tuple[str | int, ...], document: Document) -> Location:
    """Without the name of the upstream's kind, which pydantic puts between an upstream and its keys."""
    if len(location) > 2 and location[0] == "upstreams" and location[2] == _value_at(document, (*location[:2], "kind")):
        return (*location[:2], *location[3:])
    return location


def _requirement(kind: str, context: Mapping[str, Any], message: str) -> str:
    """What a value must be, in words; kind and context as pydantic names them."""
    match kind:
        case "int_type" | "int_parsing" | "int_from_float":
            return "must be a whole number"
        case "float_type" | "float_parsing" | "finite_number":
            return "must be a number"
        case "bool_type" | "bool_parsing":
            return "must be true or false"
        case "string_type" | "path_type":
            return "must be text (put quotes around it)"
        case "list_type":
            return "must be a list"
        case "dict_type" | "model_type" | "model_attributes_type":
            return "must be a mapping (key: value)"
        case "greater_than":
            return f"must be greater than {context['gt']:g}"
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}"
        case "less_than_equal":
            return f"must be at most {context['le']:g}"
        case "date_type" | "date_parsing" | "date_from_datetime_parsing" | "date_from_datetime_inexact":
            return "must be a date like 2026-11-24"
        case "literal_error":
            return f"must be one of {context['expected']}"
        case "too_short" | "string_too_short":
            return "must not be empty"
        case "string_too_long":
            return f"must have at most {context['max_length']} characters"
        case "string_pattern_mismatch":
            return f"does not match {context['pattern']}"
    return message


def _shown(document: Document, location: Location) -> str:
    inside = {"headers", "env", "args", "params"}
    if location[-1:] in (("api_key",), ("proxy",)) or location == ("usage", "url") or inside & set(location):
        return ""
    value = _value_at(document, location)
    return f", not {value!r}" if isinstance(value, str | int | float) and value != "" else ""


def _value_at(document: Document, location: Location) -> Value:
    value: Value = document.data
    for step in location:
        if isinstance(value, dict) and isinstance(step, str):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return None
    return value


def _unknown_key(location: Location, document: Document) -> str:
    key = str(location[-1])
    known = _keys_at(location[:-1], document)
    hint = _did_you_mean(key, known) or " (known here: " + ", ".join(known) + ")"
    return f"unknown key '{key}'{hint}"


def _keys_at(location: Location, document: Document) -> list[str]:
    """Keys that the schema knows at this place."""
    match location:
        case ():
            spec: type[BaseModel] = ConfigFile
        case ("models", _):
            spec = schema.ModelSpec
        case ("models", _, "image"):
            spec = schema.ImageSpec
        case ("models", _, "limits"):
            spec = schema.Limits
        case ("models", _, "deployments", _):
            spec = schema.Deployment
        case ("models", _, "deployments", _, "price"):
            spec = schema.Price
        case ("upstreams", _):
            spec = _UPSTREAM_KINDS[str(_value_at(document, (*location, "kind")))]
        case ("server",):
            spec = schema.ServerSpec
        case ("usage",):
            spec = schema.UsageSpec
        case _:
            spec = schema.ChatAppSpec
    return list(spec.model_fields)


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _dotted(location: Location) -> str:
    """`upstreams.lab.base_url`, `models[0].name`; the whole file for the top."""
    text = ""
    for step in location:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text or "the configuration"
