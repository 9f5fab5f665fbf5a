"""What GET /v1/usage may be asked. Pure: a query string in, a `UsageQuery` or one clear error out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import QueryParams

from gateway.errors import from_validation, invalid
from gateway.usage_totals import DAY_S

MAX_DAYS = 366
DEFAULT_DAYS = 30
MAX_TIME = 253_402_300_799  # the last second of the year 9999

_Time = Annotated[int, Field(ge=0, le=MAX_TIME)]


class UsageQuery(BaseModel):
    """The parameters, with OpenAI's names where it has them. Times are Unix seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    start_time: _Time
    """Requests that started from this Unix second on. Default: 30 days before end_time."""
    end_time: _Time
    """Requests that started before this Unix second. Default: now."""
    bucket_width: Literal["1d", "all"] = "1d"
    """1d: one bucket for each day in UTC; all: one bucket for the whole time. Default 1d."""
    group_by: list[Literal["model"]] = []
    """What to tell apart within a bucket: model. Default: nothing."""


def parse(given: QueryParams, now: float) -> UsageQuery:
    """Raises GatewayError (400)."""
    fields: dict[str, Any] = {}
    for name in given:
        values = given.getlist(name)
        if name.removesuffix("[]") == "group_by":  # the SDKs write group_by[]=
            fields.setdefault("group_by", []).extend(word for value in values for word in value.split(",") if word)
        elif len(values) > 1:
            raise invalid(f"{name[:128]} is given {len(values)} times; give it once", name[:128])
        else:
            fields[name] = values[0]
    fields.setdefault("end_time", int(now) + 1)
    fields.setdefault("start_time", _default_start(fields["end_time"]))
    try:
        query = UsageQuery.model_validate(fields)
    except ValidationError as error:
        known = ", ".join(UsageQuery.model_fields)
        raise from_validation([dict(problem) for problem in error.errors(include_url=False)], f"; the parameters are {known}") from error
    if query.start_time >= query.end_time:
        raise invalid(f"start_time {query.start_time} is not before end_time {query.end_time}", "start_time")
    if query.bucket_width == "1d" and query.end_time - query.start_time > MAX_DAYS * DAY_S:
        days = (query.end_time - query.start_time) / DAY_S
        message = f"{days:.0f} days are more than {MAX_DAYS}, the most for bucket_width 1d; ask for less, or for bucket_width=all"
        raise invalid(message, "start_time")
    return query


def _default_start(end_time: object) -> int:
    """0 where end_time is no number: it is refused for that."""
    text = str(end_time)
    return max(0, int(text) - DEFAULT_DAYS * DAY_S) if text.isascii() and text.isdecimal() and len(text) < 20 else 0


def parameters() -> list[dict[str, Any]]:
    """The parameters as an OpenAPI description names them; none is required."""
    schema = UsageQuery.model_json_schema()["properties"]
    schema["group_by"]["items"] = {"type": "string", "enum": ["model", ""]}  # `group_by=` is how a form says: nothing
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": described.get("description", ""),
            "schema": {key: value for key, value in described.items() if key not in ("description", "title")},
        }
        for name, described in schema.items()
    ]
