"""What may stand in a configuration, key by key, with meaning, unit and default.

Every model is frozen and refuses keys it does not know. Values arrive here already merged and with their `${ENV}` references
resolved (`config.loader` does both): nothing in this module reads a file or the environment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ByteSize, ConfigDict, Field, SecretStr, field_validator, model_validator

from config.presets import image_preset
from config.qwen import qwen_facts

Modality: TypeAlias = Literal["text", "image"]
LocalKind: TypeAlias = Literal["vllm", "transformers", "diffusers"]

LOCAL_KINDS: frozenset[str] = frozenset({"vllm", "transformers", "diffusers"})
BUILTIN_PREFIX = "builtin:"
# litellm's parameters that have a key of their own here, or come from the request
LITELLM_OWN_KEYS: frozenset[str] = frozenset(
    {"model", "messages", "stream", "api_key", "api_base", "base_url", "timeout", "num_retries", "max_retries", "drop_params"}
)

_IN_A_REQUEST = re.compile(r"[!-~]+")  # what may stand in a request's first line and in its Host header
_BUDGETED = re.compile(r"cpu|mps|cuda:(0|[1-9]\d?)")
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")


class _Spec(BaseModel):
    # hide_input_in_errors: the input may be a secret, and pydantic would print it.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True, use_attribute_docstrings=True)


def parse_size(text: str) -> tuple[int, int]:
    """Width and height in pixels of "WIDTHxHEIGHT". Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"size {text!r} is not WIDTHxHEIGHT, for example '1024x1024'")
    return int(match[1]), int(match[2])


class Price(_Spec):
    """What a deployment's tokens cost, for upstreams that do not say so themselves."""

    input_usd_per_million: float = Field(ge=0)
    """US dollars for a million prompt tokens. Required."""
    output_usd_per_million: float = Field(ge=0)
    """US dollars for a million tokens of the answer, reasoning included. Required."""
    cached_input_usd_per_million: float | None = Field(default=None, ge=0)
    """US dollars for a million prompt tokens that the upstream had in its cache. Default null: as any other prompt token."""
    as_of: date
    """The day on which these prices were read, YYYY-MM-DD: prices change, and a table without a date cannot be checked. Required."""


class Deployment(_Spec):
    """One way to answer for a model: an upstream, and the name it knows the model by."""

    upstream: str
    """Key of `upstreams`. Required."""
    model: str = Field(min_length=1)
    """The upstream's own id: a Hub id, a path (starting with ./ ../ / or ~/, relative to the configuration file) or a
    builtin: name for the local kinds, the provider's id for hosted ones. Under a model name that ends in "*", a "*" here stands for
    the rest of the name that a client sent. Required."""
    weight: float = Field(default=1, gt=0)
    """Share of the requests under strategy: weighted, beside the weights of the others. Default 1."""
    only_after: list[Literal["context_length_exceeded", "content_filter"]] = Field(default_factory=list)
    """Used only where another deployment has refused the request for one of these reasons. Default none: used in its turn."""
    price: Price | None = None
    """What its tokens cost; the upstream's own figure goes before it. Default null: unknown unless the upstream says it."""

    @property
    def engine_id(self) -> str:
        """Name of the engine process behind a local deployment."""
        return f"{self.upstream}:{self.model}"


class Limits(_Spec):
    """How much may be asked: of a model, by all keys together, or with one API key, of all models together."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    """Requests in a minute; as many may come at once after a quiet minute. Default null: no limit."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Tokens of prompts and answers in a minute: estimated when a request comes, corrected when it has ended. Default null: no limit."""
    concurrent_requests: int | None = Field(default=None, ge=1)
    """Requests that may run at the same time. Default null: no limit."""
    budget_usd_per_day: float | None = Field(default=None, gt=0)
    """US dollars in a UTC day, counted when a request has ended: what runs when it is used up still ends. Default null: no limit."""
    budget_usd_per_month: float | None = Field(default=None, gt=0)
    """US dollars in a UTC calendar month, counted like those of a day. Default null: no limit."""


class ImageSpec(_Spec):
    """Limits and defaults of an image model."""

    default_size: str = "1024x1024"
    """WIDTHxHEIGHT in pixels when the request names none. Default 1024x1024."""
    size_multiple: int = Field(default=16, ge=1, le=256)
    """Both sides must be multiples of this many pixels. Default 16."""
    min_side: int = Field(default=64, ge=8, le=8192)
    """Shortest side in pixels. Default 64."""
    max_side: int = Field(default=2048, ge=8, le=8192)
    """Longest side in pixels. Default 2048."""
    max_n: int = Field(default=4, ge=1, le=16)
    """Most pictures in one request. Default 4."""
    num_inference_steps: int = Field(default=28, ge=1, le=1000)
    """Denoising steps when the request names none. Default 28."""
    max_num_inference_steps: int = Field(default=100, ge=1, le=1000)
    """Most denoising steps a request may ask for. Default 100."""
    guidance_scale: float | None = Field(default=None, ge=0, le=100)
    """Guidance when the request names none; null leaves it to the pipeline. Default null."""

    def size_problem(self, width: int, height: int) -> str | None:
        """Why a picture of this size cannot be made, or None."""
        for side, pixels in (("width", width), ("height", height)):
            if not self.min_side <= pixels <= self.max_side:
                return f"{side} {pixels} is outside {self.min_side} to {self.max_side}"
            if pixels % self.size_multiple:
                return f"{side} {pixels} is not a multiple of {self.size_multiple}"
        return None

    @model_validator(mode="after")
    def _check(self) -> ImageSpec:
        if self.min_side > self.max_side:
            raise ValueError(f"min_side {self.min_side} is greater than max_side {self.max_side}")
        problem = self.size_problem(*parse_size(self.default_size))
        if problem is not None:
            raise ValueError(f"default_size {self.default_size}: {problem}")
        if self.num_inference_steps > self.max_num_inference_steps:
            raise ValueError(
                f"num_inference_steps {self.num_inference_steps} is greater than max_num_inference_steps {self.max_num_inference_steps}"
            )
        return self


class SamplingSpec(_Spec):
    """How tokens are chosen where a request does not say. Null: as the upstream does by itself."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    """How far the likeliest token may be left; 0 always takes it. Default null, or the model's own where config.qwen knows it."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Share of probability from which tokens are drawn. Default as above."""
    top_k: int | None = Field(default=None, ge=-1)
    """Number of tokens from which one is drawn; 0 or -1: of all. Default as above."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Least probability of a token, as a share of the likeliest one's. Default as above."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Taken from the score of every token that the answer holds already. Default as above."""
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Taken from a token's score as often as the answer holds it. Default as above."""
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    """What the score of a token is divided by that prompt or answer hold already; 1: nothing. Default as above."""

    def given(self) -> dict[str, float]:
        """Those that are set, by the names of a request's fields."""
        return self.model_dump(exclude_none=True)


class ModeSampling(_Spec):
    """Sampling in each of a chat model's two modes, field by field where a request is silent; a request for temperature 0 gets none."""

    thinking: SamplingSpec = Field(default_factory=SamplingSpec)
    """While it reasons before it answers. Default: the recommendation of the model's card where config.qwen knows it, else nothing."""
    no_thinking: SamplingSpec = Field(default_factory=SamplingSpec)
    """While it answers at once. Default as above."""


class RoutingSpec(_Spec):
    """How a chat model's requests are spread over its deployments, and how failures are met."""

    strategy: Literal["ordered", "weighted", "least_in_flight", "session", "prompt_prefix"] = "ordered"
    """Which deployment is asked first: ordered (the first listed), weighted (by chance, by weight), least_in_flight, session (the same one
    for the same x-session-id header, prompt_cache_key or user) or prompt_prefix (the same one for the same beginning of a
    conversation, so that its prefix cache is hit). The others follow where it cannot answer. Default ordered."""
    max_attempts: int = Field(default=4, ge=1, le=100)
    """Most attempts for one request, over all deployments. Default 4."""
    max_wait_s: float = Field(default=5, ge=0)
    """Seconds that one request may wait between its attempts in all, an upstream's Retry-After included; 0 asks no deployment twice.
    Default 5."""
    breaker_failures: int = Field(default=5, ge=1)
    """Failures in a row after which a deployment is left alone for a while. Default 5."""
    breaker_open_s: float = Field(default=15, gt=0)
    """Seconds for which it is left alone; then one request may try it. Doubles with each failed trial, up to 16 times. Default 15."""


class ModelSpec(_Spec):
    """One public model name, and who answers for it, in order."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]*\*?$", max_length=128)
    """The name clients send as `model`. One that ends in "*" stands for every name that begins so and is not listed itself. Required."""
    kind: Literal["chat", "image"]
    """What it makes. Required."""
    description: str = ""
    """One line for people, shown in model lists. Default empty."""
    demo: bool = False
    """Marks a model that only shows that everything works. Default false."""
    deployments: list[Deployment] = Field(min_length=1)
    """Tried in this order until one can answer, unless `routing` says otherwise. At least one."""
    routing: RoutingSpec = Field(default_factory=RoutingSpec)
    """Which deployment is asked first, and how often another one; only for kind: chat."""
    input_modalities: list[Modality] | None = Field(default=None, min_length=1)
    """What a message may contain: text, image. Default null: unknown, requests pass unchecked."""
    tools: bool | None = None
    """Whether it calls tools. Default null: unknown."""
    reasoning: bool | None = None
    """Whether it can reason before it answers. Default null: unknown."""
    thinking: bool | None = None
    """Whether it reasons when the client does not say. Default null: the model's own default."""
    sampling: ModeSampling = Field(default_factory=ModeSampling)
    """Sampling where the client does not say, only for kind: chat; false for none. An upstream gets what its API has names for. Default:
    the recommendation for the first deployment's model where config.qwen knows it, key by key below what is written here; else none."""
    context_length: int | None = Field(default=None, ge=1)
    """Tokens of prompt and answer together. Default null: unknown."""
    limits: Limits = Field(default_factory=Limits)
    """How much may be asked of it, by all keys together. Default: no limit."""
    image: ImageSpec | None = None
    """Limits and defaults, only for kind: image. Default: the model's own where config.presets knows it, else those of ImageSpec."""

    @model_validator(mode="before")
    @classmethod
    def _default_image(cls, data: object) -> object:
        if not isinstance(data, Mapping) or data.get("kind") != "image":
            return data
        image = data.get("image")
        given = {} if image is None else image
        return {**data, "image": {**image_preset(_first_model(data)), **given}} if isinstance(given, Mapping) else data

    @model_validator(mode="before")
    @classmethod
    def _default_sampling(cls, data: object) -> object:
        if not isinstance(data, Mapping) or data.get("kind") != "chat":
            return data
        given = data.get("sampling", {})
        if given is False:
            return {**data, "sampling": {}}
        facts = qwen_facts(_first_model(data))
        if facts is None or not isinstance(given, Mapping):
            return data
        modes = {"thinking": dict(facts.thinking), "no_thinking": dict(facts.no_thinking)}
        for mode, said in given.items():
            modes[mode] = {**modes.get(mode, {}), **said} if isinstance(said, Mapping) else said
        return {**data, "sampling": modes}

    @property
    def thinks(self) -> bool | None:
        """Whether it reasons where neither client nor configuration say so; None: unknown."""
        facts = None if self.reasoning is False else qwen_facts(self.deployments[0].model)
        known = facts.thinks if facts else self.reasoning
        return known if self.thinking is None else self.thinking

    @model_validator(mode="after")
    def _check(self) -> ModelSpec:
        if self.kind == "chat" and self.image is not None:
            raise ValueError("'image' belongs to kind: image, this model is kind: chat")
        if self.kind == "image":
            if "routing" in self.model_fields_set:
                raise ValueError("'routing' belongs to kind: chat, this model is kind: image")
            chat_only = {"tools": self.tools, "reasoning": self.reasoning, "thinking": self.thinking, "context_length": self.context_length}
            for key, value in chat_only.items():
                if value is not None:
                    raise ValueError(f"'{key}' belongs to kind: chat, this model is kind: image")
            if "sampling" in self.model_fields_set:
                raise ValueError("'sampling' belongs to kind: chat, this model is kind: image")
            if self.limits.tokens_per_minute is not None:
                raise ValueError("'limits.tokens_per_minute' belongs to kind: chat, this model is kind: image")
        if all(deployment.only_after for deployment in self.deployments):
            raise ValueError("every deployment has only_after; one at least must answer in its turn")
        if self.thinking and self.reasoning is False:
            raise ValueError("thinking: true needs a model that can reason, this one says reasoning: false")
        return self


def _first_model(data: Mapping[str, object]) -> str:
    """Upstream's id in the first deployment of a model that is not validated yet; empty if there is none."""
    deployments = data.get("deployments")
    first = deployments[0] if isinstance(deployments, list) and deployments else None
    model = first.get("model") if isinstance(first, Mapping) else None
    return model if isinstance(model, str) else ""


def _check_base_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("base_url must be an http:// or https:// address, for example http://127.0.0.1:9110/v1")
    if parts.username or parts.password:
        raise ValueError("base_url must not hold a user or password; use api_key")
    if parts.query or parts.fragment:
        raise ValueError("base_url must end before any ? or #; Tandem appends the route to it")
    address = parts._replace(netloc=_ascii_authority(parts)).geturl()
    if not _IN_A_REQUEST.fullmatch(address):
        raise ValueError("base_url must not hold spaces, and its path must be percent-encoded: only ASCII goes over the wire")
    return address.rstrip("/")


def _ascii_authority(parts: SplitResult) -> str:
    """Host and port as they are looked up and sent: a host in another script by its ASCII name (IDNA)."""
    host = parts.hostname or ""
    try:
        name = host.encode("idna").decode()
    except UnicodeError:
        problem = "a part between two dots is empty, longer than 63 characters or not a name"
        raise ValueError(f"base_url has the host {host[:80]!r}, which no name service knows: {problem}") from None
    try:
        port = parts.port
    except ValueError:
        raise ValueError("base_url has a port that is not a number up to 65535") from None
    return parts.netloc if host.isascii() else f"{name}:{port}" if port else name


class _HostedSpec(_Spec):
    connect_timeout_s: float = Field(default=5, gt=0)
    """Seconds to reach the server, TLS included. Default 5."""
    first_token_timeout_s: float = Field(default=120, gt=0)
    """Seconds from sending the request to the first content. Default 120."""
    idle_timeout_s: float = Field(default=60, gt=0)
    """Seconds without a byte before a running answer counts as lost. Default 60."""
    total_timeout_s: float = Field(default=3600, gt=0)
    """Seconds for the whole answer. Default 3600."""


class _HttpSpec(_HostedSpec):
    """How Tandem's own connections get there."""

    ca_file: Path | None = None
    """PEM file of certificate authorities to trust beside the system's, relative to the configuration file. Default null: none."""
    client_cert: Path | None = None
    """PEM file of the certificate by which Tandem names itself to the server. Default null: none."""
    client_key: Path | None = None
    """PEM file of that certificate's key. Default null: it stands in client_cert."""
    proxy: str | None = Field(default=None, repr=False)
    """http:// address of a proxy, with user:password@ where it wants them, or "none" for a direct connection. Default null: what
    HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY say. Addresses of this machine are always reached directly."""

    @field_validator("proxy")
    @classmethod
    def _check_proxy(cls, value: str | None) -> str | None:
        if value is None or value == "none":
            return value
        parts = urlsplit(value)
        port = parts.netloc.rpartition("@")[2].rpartition("]")[2].partition(":")[2]
        if parts.scheme != "http" or not parts.hostname or (port and not port.isdecimal()):
            raise ValueError("proxy must be an http:// address, for example http://proxy.example.org:3128, or none")
        return value

    @model_validator(mode="after")
    def _check_client_key(self) -> _HttpSpec:
        if self.client_key is not None and self.client_cert is None:
            raise ValueError("client_key needs a client_cert, the certificate that it belongs to")
        return self


class OpenAIUpstream(_HttpSpec):
    """Any server that speaks the OpenAI API over HTTP."""

    kind: Literal["openai"]
    """Which kind of upstream. Required."""
    base_url: str
    """Address up to and including /v1. Required."""
    api_key: SecretStr | None = None
    """Sent as bearer token; write "${VARIABLE}". Default null: no Authorization header."""
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    """Extra request headers. Default none."""
    usage_in_streams: bool = True
    """Whether it is asked for the token counts of each streamed answer (stream_options), for the usage table; set false for a server
    that refuses that field. Default true."""
    thinking: Literal["as_given", "chat_template_kwargs", "reasoning", "enable_thinking", "reasoning_effort"] = "as_given"
    """How this server spells thinking mode: chat_template_kwargs (vLLM, SGLang), reasoning (OpenRouter), enable_thinking (Alibaba) or
    reasoning_effort (OpenAI); requests are translated to it. Default as_given: they pass as the client wrote them."""

    _check_base_url = field_validator("base_url")(_check_base_url)


class OpenRouterUpstream(_HttpSpec):
    """OpenRouter."""

    kind: Literal["openrouter"]
    """Which kind of upstream. Required."""
    base_url: str = "https://openrouter.ai/api/v1"
    """Address up to and including /v1. Default: OpenRouter's own."""
    api_key: SecretStr | None = None
    """Bearer token. Default "${OPENROUTER_API_KEY}"."""
    referer: str | None = None
    """HTTP-Referer by which OpenRouter names the application. Default null: not sent."""
    title: str | None = None
    """X-Title by which OpenRouter names the application. Default null: not sent."""

    _check_base_url = field_validator("base_url")(_check_base_url)


class LitellmUpstream(_HostedSpec):
    """Any provider that litellm knows; a deployment's model is litellm's id, such as anthropic/claude-sonnet-4-5."""

    kind: Literal["litellm"]
    """Which kind of upstream. Required."""
    api_key: SecretStr | None = None
    """The provider's key; write "${VARIABLE}". Default null: litellm's own variable for the provider, such as ANTHROPIC_API_KEY."""
    base_url: str | None = None
    """Address of the provider's API, as litellm takes it (api_base). Default null: the provider's own."""
    params: dict[str, str] = Field(default_factory=dict, repr=False)
    """What else litellm needs for this provider, by its own names: api_version, aws_region_name, vertex_project. Default none."""
    drop_params: bool = False
    """Whether fields of a request that the provider does not take are left out. Default false: such a request is refused."""

    @field_validator("base_url")
    @classmethod
    def _check_address(cls, value: str | None) -> str | None:
        return None if value is None else _check_base_url(value)

    @field_validator("params")
    @classmethod
    def _check_params(cls, value: dict[str, str]) -> dict[str, str]:
        for name in sorted(LITELLM_OWN_KEYS & value.keys()):
            raise ValueError(f"params must not hold {name}: Tandem sets it itself, from the keys of this upstream and from the request")
        return value


def _flags(value: object) -> object:
    """Command-line flags from a list of texts and numbers, or from a mapping {max-model-len: 8192, language-model-only: true}."""
    if isinstance(value, list):
        return [str(item) if isinstance(item, int | float) and not isinstance(item, bool) else item for item in value]
    if not isinstance(value, Mapping):
        return value
    flags: list[object] = []
    for name, setting in value.items():
        if setting is False or setting is None:
            continue
        flags.append(f"--{str(name).removeprefix('--')}")
        if setting is not True:
            flags.append(str(setting) if isinstance(setting, int | float) else setting)
    return flags


class _LocalSpec(_Spec):
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    """auto, cpu, cuda, cuda:N or mps. Default auto: a GPU where there is one."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number format of the weights. Default auto: what suits device and checkpoint."""
    start_timeout_s: float = Field(default=600, gt=0)
    """Seconds an engine may take to load. Default 600."""
    max_restarts: int = Field(default=3, ge=0)
    """Restarts after crashes in a row before Tandem gives up. Default 3."""
    args: list[str] = Field(default_factory=list)
    """Extra command-line flags of the engine: a list, or a mapping of flag to value. Default none."""
    env: dict[str, str] = Field(default_factory=dict, repr=False)
    """Extra environment variables of the engine. Default none."""
    memory: ByteSize | None = Field(default=None, gt=0)
    """What each engine takes of each of its devices, in bytes or as "18GiB", counted against `memory.budgets`. Default null: estimated; for
    vLLM on a GPU its share of it (gpu-memory-utilization), for the others from the size of the weights on disk."""
    pinned: bool = False
    """Whether its engines, once loaded, stay where another engine needs their memory. Default false: idle ones are stopped for it."""

    _flags = field_validator("args", mode="before")(_flags)


class VllmUpstream(_LocalSpec):
    """vLLM, started by Tandem, one process for each model."""

    kind: Literal["vllm"]
    """Which kind of upstream. Required."""
    python: Path | None = None
    """Python of the environment that has vLLM. Default null: the one that `tandem engines install vllm` made for this device, else
    `vllm` on the PATH."""
    plan: bool = True
    """Whether vLLM's flags for memory (context, sequences, share of the GPU, quantisation, tensor parallel) come from the memory that is
    free when it starts, as far as `args` leaves them open; false leaves them to vLLM. `tandem plan` shows them. Default true."""
    text_only: bool = False
    """Whether the model's vision tower is left out, which frees its memory; pictures are refused then. Default false."""
    speculative: Literal["mtp"] | None = None
    """mtp guesses the next token with the head that Qwen3.5 has for it: quicker for a few requests at a time, slower for many.
    Default null: no guessing."""
    idle_unload_s: float | None = Field(default=None, gt=0)
    """Seconds without a request before the engine is stopped. Default null: never (a start takes minutes)."""


class TransformersUpstream(_LocalSpec):
    """Tandem's own chat worker."""

    kind: Literal["transformers"]
    """Which kind of upstream. Required."""
    idle_unload_s: float | None = Field(default=900, gt=0)
    """Seconds without a request before the engine is stopped; null for never. Default 900."""
    max_queue: int = Field(default=64, ge=1)
    """Requests that may wait; the next one gets status 429. Default 64."""


class DiffusersUpstream(_LocalSpec):
    """Tandem's own image worker."""

    kind: Literal["diffusers"]
    """Which kind of upstream. Required."""
    idle_unload_s: float | None = Field(default=900, gt=0)
    """Seconds without a request before the engine is stopped; null for never. Default 900."""
    max_queue: int = Field(default=32, ge=1)
    """Jobs that may wait; the next one gets status 429. Default 32."""


HostedUpstream: TypeAlias = OpenAIUpstream | OpenRouterUpstream | LitellmUpstream
LocalUpstream: TypeAlias = VllmUpstream | TransformersUpstream | DiffusersUpstream
UpstreamSpec: TypeAlias = Annotated[HostedUpstream | LocalUpstream, Field(discriminator="kind")]


class ServerSpec(_Spec):
    """Where the API listens."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on, for the chat app too. Default 127.0.0.1: this machine only."""
    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port; 0 takes any free one. Default 8000."""
    max_body_bytes: int = Field(default=20 * 1024 * 1024, ge=1024)
    """Largest request body in bytes. Default 20971520 (20 MiB)."""
    shutdown_grace_s: int = Field(default=3, ge=1, le=3600)
    """Seconds that running answers get to finish when Tandem is told to stop; then they end with an error event. Default 3."""
    metrics_without_key: bool = False
    """Whether GET /metrics, which names models and upstreams and says how much they are used, answers without an API key. Default false."""


class RemoteImagesSpec(_Spec):
    """Pictures and videos that a message names by URL. For a local engine the gateway fetches them; a hosted upstream gets the URL."""

    fetch: bool = True
    """Whether they are fetched; false refuses such a URL with status 400. Default true."""
    max_bytes: int = Field(default=20 * 1024 * 1024, ge=1024)
    """Bytes of all that is fetched for one request together. Default 20971520 (20 MiB)."""
    max_per_request: int = Field(default=8, ge=1, le=64)
    """Most URLs in one request. Default 8."""
    timeout_s: float = Field(default=10, gt=0, le=300)
    """Seconds for one of them, redirects included. Default 10."""
    private_hosts: list[str] = Field(default_factory=list)
    """Names of hosts that may have an address of a private network or of this machine. Default none: only public addresses."""


class LogSpec(_Spec):
    """What the gateway writes to standard error."""

    format: Literal["auto", "json", "text"] = "auto"
    """json: one object in each line; text: short lines for people. Default auto: text on a terminal, json anywhere else."""
    access: bool = True
    """Whether each request gets a line when it has ended. Default true."""


class MemorySpec(_Spec):
    """How local engines share the memory of a device: an engine that has no room takes the place of idle ones."""

    budgets: dict[str, ByteSize] = Field(default_factory=dict)
    """What local engines may take of a device together, by device (cpu, mps, cuda:0, cuda:1 and so on), in bytes or as "22GiB". Default:
    of each NVIDIA GPU all but 1 GiB, of anything else as much as they like."""
    wait_s: float = Field(default=300, gt=0)
    """Seconds that a request waits for busy engines to leave, before it is refused with status 503. Default 300."""

    @field_validator("budgets")
    @classmethod
    def _check_devices(cls, value: dict[str, int]) -> dict[str, int]:
        for device in value:
            if not _BUDGETED.fullmatch(device):
                raise ValueError(f"budgets names the device {device[:40]!r}; known are cpu, mps, cuda:0, cuda:1 and so on")
        return value


class ChatAppSpec(_Spec):
    """The chat app."""

    port: int = Field(default=8501, ge=0, le=65535)
    """TCP port; 0 takes any free one. Default 8501."""


_DATABASES = ("sqlite", "postgresql", "postgres")


class UsageSpec(_Spec):
    """Where it is kept what each request used."""

    url: SecretStr | None = None
    """Database, as a URL: postgresql://USER:PASSWORD@HOST:PORT/NAME, best as "${VARIABLE}", or sqlite:////FILE with a whole path.
    Default null: the SQLite file usage.sqlite in the data directory."""
    queue_size: int = Field(default=10_000, ge=1)
    """Requests that may wait in memory to be written; above it the newest are not kept, and counted. Default 10000."""
    retention_days: int | None = Field(default=None, ge=1)
    """Days after which a request is deleted. Default null: never."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: SecretStr | None) -> SecretStr | None:
        problem = _database_problem(value.get_secret_value()) if value else None
        if problem is not None:
            raise ValueError(problem)
        return value


def _database_problem(url: str) -> str | None:
    """Why this cannot be the URL of a database, without a piece of it, or None."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - reading it checks it
    except ValueError:
        return "url cannot be read; characters like @ / : # in a user or password are written as %40 %2F %3A %23"
    if parts.scheme not in _DATABASES:
        return "url must start with postgresql:// or sqlite:////"
    if parts.scheme == "sqlite" and (parts.netloc or not parts.path.startswith("//") or not parts.path.strip("/")):
        return "an SQLite url needs the whole path of its file, with four slashes: sqlite:////var/lib/tandem/usage.sqlite"
    return None


class ConfigFile(_Spec):
    """What a profile and a user's file may say, after merging."""

    models: list[ModelSpec] = Field(min_length=1)
    """What exists: the public model names. At least one."""
    upstreams: dict[str, UpstreamSpec]
    """Who can answer, by a name of your choice."""
    server: ServerSpec = Field(default_factory=ServerSpec)
    """Where the API listens."""
    chat_app: ChatAppSpec = Field(default_factory=ChatAppSpec)
    """The chat app."""
    remote_images: RemoteImagesSpec = Field(default_factory=RemoteImagesSpec)
    """How pictures and videos are fetched for local engines."""
    usage: UsageSpec = Field(default_factory=UsageSpec)
    """Where it is kept what each request used."""
    log: LogSpec = Field(default_factory=LogSpec)
    """What the gateway writes to standard error."""
    memory: MemorySpec = Field(default_factory=MemorySpec)
    """How local engines share the memory of a device."""

    @field_validator("upstreams")
    @classmethod
    def _check_names(cls, upstreams: dict[str, Any]) -> dict[str, Any]:
        for name in upstreams:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ValueError(f"upstream name {name!r} may hold letters, digits, '.', '_' and '-' only")
        return upstreams

    def model(self, name: str) -> ModelSpec | None:
        """The model of this public name."""
        return next((model for model in self.models if model.name == name), None)


class Settings(ConfigFile):
    """A whole configuration and where it came from. The fields below are filled by `config.loader`."""

    profile: str = "custom"
    """Name of the profile underneath."""
    sources: list[str] = Field(default_factory=list)
    """What was read, lowest first: profile, file, environment variables."""
    unset_keys: dict[str, str] = Field(default_factory=dict)
    """Upstream name to the environment variable that its api_key names and that is not set."""

    @model_validator(mode="after")
    def _check_references(self) -> Settings:
        problem = next(iter(reference_problems(self)), None)
        if problem is not None:
            raise ValueError(problem.message)
        return self

    def key_problem(self, upstream: str) -> str | None:
        """Why this upstream has no API key though it needs one, with the next step, or None."""
        variable = self.unset_keys.get(upstream)
        spec = self.upstreams[upstream]
        if variable is not None:
            return f"{variable} is not set; export {variable}=..."
        if isinstance(spec, OpenRouterUpstream) and spec.api_key is None:
            return f"upstream '{upstream}' has no api_key; export OPENROUTER_API_KEY=..."
        return None


class ReferenceProblem(BaseModel):
    """A part of a configuration that does not fit another part."""

    model_config = ConfigDict(frozen=True)

    location: tuple[str | int, ...]
    """Path of keys and list positions to the offending value."""
    message: str
    """What is wrong and what would be right."""


def reference_problems(config: ConfigFile) -> list[ReferenceProblem]:
    """Everything wrong between models and upstreams, in file order."""
    problems: list[ReferenceProblem] = []
    seen: set[str] = set()
    for index, model in enumerate(config.models):
        if model.name in seen:
            problems.append(ReferenceProblem(location=("models", index, "name"), message=f"model name '{model.name}' is used twice"))
        seen.add(model.name)
        for position, deployment in enumerate(model.deployments):
            message = _deployment_problem(config, model, deployment)
            if message is not None:
                location = ("models", index, "deployments", position, "upstream")
                problems.append(ReferenceProblem(location=location, message=message))
    return problems


def _deployment_problem(config: ConfigFile, model: ModelSpec, deployment: Deployment) -> str | None:
    upstream = config.upstreams.get(deployment.upstream)
    if upstream is None:
        known = ", ".join(sorted(config.upstreams)) or "none"
        return f"model '{model.name}' names upstream '{deployment.upstream}', which does not exist (known: {known})"
    if model.kind == "chat" and upstream.kind == "diffusers":
        return f"chat model '{model.name}' cannot run on '{deployment.upstream}' (kind: diffusers makes images)"
    if model.kind == "image" and upstream.kind != "diffusers":
        return f"image model '{model.name}' needs an upstream of kind: diffusers, '{deployment.upstream}' is kind: {upstream.kind}"
    if model.thinking is not None and isinstance(upstream, OpenAIUpstream) and upstream.thinking == "as_given":
        spellings = "chat_template_kwargs (vLLM), reasoning (OpenRouter), enable_thinking (Alibaba) or reasoning_effort (OpenAI)"
        problem = f"model '{model.name}' sets thinking, but '{deployment.upstream}' does not say how it spells it"
        return f"{problem}; set its thinking to {spellings}"
    if "*" in deployment.model and not model.name.endswith("*"):
        return f"'{deployment.model}' has a '*', which needs a model name that ends in '*'; '{model.name}' does not"
    if model.name.endswith("*") and (model.kind == "image" or upstream.kind in LOCAL_KINDS):
        return f"model '{model.name}' stands for many models, which '{deployment.upstream}' (kind: {upstream.kind}) cannot serve"
    if deployment.model.startswith(BUILTIN_PREFIX) and upstream.kind not in ("transformers", "diffusers"):
        return f"'{deployment.model}' comes with Tandem's own workers (transformers, diffusers), not with kind: {upstream.kind}"
    return None
