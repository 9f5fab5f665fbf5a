"""What the replies look like that no other module describes, for the API's description. Nothing is made from these, tests compare."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from config.schema import ImageSpec, Modality
from gateway.breaker import State as BreakerState
from local_models.process import State as EngineState


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ErrorFields(_Reply):
    """OpenAI's four fields of an error."""

    message: str
    """What is wrong, for people: the value, the limit and what to do."""
    type: str
    """The kind of error, such as invalid_request_error."""
    param: str | None
    """The field or parameter that is at fault."""
    code: str | None
    """The reason, for programs."""


class Error(_Reply):
    """Every failure has this form."""

    error: ErrorFields


class Jobs(_Reply):
    """The image jobs of an engine. step and steps: of the running one; waiting: those behind it."""

    step: int
    steps: int
    waiting: int


class ModelDeployment(_Reply):
    """One that may answer for a model, and how it is now."""

    upstream: str
    kind: str
    model: str
    """The upstream's own name of the model."""
    local: bool
    breaker: BreakerState
    """open: it has failed again and again and is left alone for a while."""
    state: EngineState | Literal["hosted", "unavailable"]
    progress: float | None
    """Of loading, 0 to 1."""
    stage: str | None
    reason: str | None
    """Why it cannot be used."""
    jobs: Jobs | None


class ModelFacts(_Reply):
    """What Tandem knows of a model. Null: unknown."""

    kind: Literal["chat", "image"]
    description: str
    demo: bool
    input_modalities: list[Modality] | None
    tools: bool | None
    reasoning: bool | None
    thinking: bool | None
    """Whether it reasons where the client does not say."""
    sampling: dict[Literal["thinking", "no_thinking"], dict[str, float]] | None
    """Fields that are added to a request where the client does not say, by mode."""
    context_length: int | None
    """Tokens of prompt and answer together."""
    deployments: list[ModelDeployment]
    image: ImageSpec | None
    """Limits and defaults of an image model."""


class Model(_Reply):
    """OpenAI's model object, and one field of ours."""

    id: str
    object: Literal["model"]
    created: int
    """When the gateway started, Unix seconds."""
    owned_by: Literal["tandem"]
    tandem: ModelFacts


class ModelPage(_Reply):
    """The models that the key may use."""

    object: Literal["list"]
    data: list[Model]


class Picture(_Reply):
    """One PNG."""

    b64_json: str
    seed: int


class Pictures(_Reply):
    """OpenAI's images reply, and how the pictures were made."""

    created: int
    data: list[Picture]
    size: str
    job_id: str
    model: str
    output_format: Literal["png"]
    quality: Literal["auto"]
    background: Literal["opaque"]
    num_inference_steps: int
    guidance_scale: float | None


class Health(_Reply):
    """The process lives."""

    status: Literal["ok"]


class Readiness(_Reply):
    """Whether it can serve."""

    status: Literal["ready", "not ready"]
    models: dict[str, bool] = Field(description="By public name: whether a deployment lacks nothing.")
    engines: dict[str, EngineState]
