"""/v1/admin/keys: API keys made, listed and revoked over HTTP, by keys that are marked `admin` only.

The secret of a new key is in the answer that made it and nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect

from config.schema import Limits
from gateway.api_key import ApiKey, NewKey, State
from gateway.auth import KeyRing
from gateway.body import read_body
from gateway.chat_request import parse_object
from gateway.description import body_of, errors
from gateway.errors import GatewayError, forbidden, from_validation, invalid
from gateway.key_file import KeyFile, KeyFileError, UnknownKey

PATH = "/v1/admin/keys"

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class KeyView(BaseModel):
    """What anybody may see of a key. Times are Unix seconds."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    object: Literal["api_key"] = "api_key"
    id: str
    name: str
    state: State
    created_at: int
    expires_at: int | None
    """Null: never."""
    revoked_at: int | None
    models: list[str] | None
    """Patterns of public model names; null: all of them."""
    limits: Limits
    admin: bool

    @classmethod
    def of(cls, key: ApiKey, now: float) -> KeyView:
        return cls(
            id=key.id,
            name=key.name,
            state=key.state(now),
            created_at=int(key.created_at),
            expires_at=key.expires_at,
            revoked_at=None if key.revoked_at is None else int(key.revoked_at),
            models=None if key.models is None else list(key.models),
            limits=key.limits,
            admin=key.admin,
        )


class CreatedKey(KeyView):
    """A key that was made just now, with its secret."""

    key: str = Field(repr=False)
    """The secret; it is shown this once."""


class KeyList(BaseModel):
    """Every managed key, oldest first."""

    object: Literal["list"] = "list"
    data: list[KeyView]


def require_admin(keys: KeyRing, what: str = "keys") -> Any:
    """A dependency that lets admin keys pass. what: they manage, for the message. Raises GatewayError (401, 403)."""

    async def check(request: Request) -> None:
        key = keys.check(request.scope["headers"])
        if not key.admin:
            message = (
                f"the API key '{key.name}' ({key.id}) may not manage {what}; use one that was made with --admin, or the installation's own"
            )
            raise forbidden(message, "admin_required")

    return Depends(check)


def key_routes(keys: KeyRing, file: KeyFile, max_body_bytes: int) -> APIRouter:
    """The routes over this file, which is that of `keys`: a change is in force when it is answered."""
    routes = APIRouter(prefix=PATH, dependencies=[require_admin(keys)], responses=errors(401, 403, 500))

    # The body is read by hand: FastAPI would read all of it, however large, before it asks for a key.
    @routes.post("", status_code=201, response_model=CreatedKey, openapi_extra={"requestBody": body_of(NewKey)}, responses=errors(400, 413))
    async def create_key(request: Request) -> Response:
        """Make a key. Its secret is in this answer only."""
        try:
            body = await read_body(request.scope, request.receive, max_body_bytes)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        now = keys.clock()
        wish = parse(body, now)
        key, plain = await asyncio.to_thread(_usable, file.create, wish, now)
        keys.refresh()
        made = CreatedKey(**KeyView.of(key, now).model_dump(), key=plain)
        return JSONResponse(made.model_dump(), 201, {"cache-control": "no-store"})

    @routes.get("")
    async def list_keys() -> KeyList:
        """Every managed key, revoked and expired ones too."""
        now = keys.clock()
        return KeyList(data=[KeyView.of(key, now) for key in await asyncio.to_thread(_usable, file.read)])

    @routes.delete("/{key_id}", responses=errors(404))
    async def revoke_key(key_id: str) -> KeyView:
        """End a key: the next request with it is refused. What runs goes on."""
        now = keys.clock()
        try:
            key = await asyncio.to_thread(_usable, file.revoke, key_id, now)
        except UnknownKey as error:
            message = f"no managed key has the id '{key_id[:64]}'; GET {PATH} lists them"
            raise GatewayError(404, message, "key_not_found") from error
        keys.refresh()
        return KeyView.of(key, now)

    return routes


def parse(body: bytes, now: float) -> NewKey:
    """The wish in a request's body. Raises GatewayError (400)."""
    parse_object(body)
    try:
        wish = NewKey.model_validate_json(body, strict=True)
    except ValidationError as error:
        known = f"; the fields of a key are {', '.join(NewKey.model_fields)}, those of limits {', '.join(Limits.model_fields)}"
        raise from_validation([dict(problem) for problem in error.errors(include_url=False)], known) from error
    if wish.expires_at is not None and wish.expires_at <= now:
        raise invalid(f"expires_at {wish.expires_at} is past; name a later Unix time in seconds", "expires_at")
    return wish


def _usable(work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    """What `work` on the key file returns. Raises GatewayError (500) where the file cannot be used."""
    try:
        return work(*args, **kwargs)
    except KeyFileError as error:
        raise GatewayError(500, str(error), "key_file_unusable", "api_error", headers={b"x-should-retry": b"false"}) from error
