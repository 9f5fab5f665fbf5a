"""The pictures and videos in a conversation, handed to a local engine inside the request: an engine never fetches.

A message that names none by URL passes as it is. All of a request's URLs are fetched at once, each only once, within one allowance.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapters.errors import UpstreamError
from adapters.remote_media import Allowance, Media, RemoteMedia

_KINDS: Mapping[str, Media] = {"image_url": "image", "video_url": "video"}


@dataclass(frozen=True, slots=True)
class _Found:
    """One part with a URL, and where it stands."""

    message: int
    part: int
    key: str
    url: str

    @property
    def param(self) -> str:
        return f"messages[{self.message}].content[{self.part}].{self.key}"


async def inlined(messages: Sequence[Any], media: RemoteMedia, known: dict[str, str]) -> Sequence[Any]:
    """The messages with data: URLs only: the very same object where nothing had to be fetched.

    known: URLs of this request that were fetched before, and their data: URLs; filled. Raises UpstreamError (400).
    """
    found = [part for part in _media_in(messages) if part.url[:5].lower() != "data:"]
    if not found:
        return messages
    if not media.fetch:
        message = f"{found[0].param} is not a data: URL, and remote_images.fetch is off here; send the picture itself"
        raise UpstreamError(400, message, "unsupported_image_url", "invalid_request_error", found[0].param)
    if len(found) > media.max_per_request:
        message = f"the messages name {len(found)} pictures by URL and the limit is {media.max_per_request}; send fewer, or data: URLs"
        raise UpstreamError(400, message, "too_many_images", "invalid_request_error", found[media.max_per_request].param, fallback=False)
    await _fetch({part.url: part for part in reversed(found) if part.url not in known}, media, known)
    return _replaced(messages, found, known)


async def _fetch(wanted: Mapping[str, _Found], media: RemoteMedia, known: dict[str, str]) -> None:
    allowance = Allowance.of(media.max_bytes)

    async def fetch(part: _Found) -> None:
        known[part.url] = await media.data_url(part.url, _KINDS[part.key], part.param, allowance)

    try:
        async with asyncio.TaskGroup() as group:
            for part in wanted.values():
                group.create_task(fetch(part))
    except* UpstreamError as failures:
        first = failures.exceptions[0]
    else:
        return
    raise first


def _media_in(messages: Sequence[Any]) -> Iterator[_Found]:
    for index, message in enumerate(messages):
        content = message.get("content")
        for position, part in enumerate(content if isinstance(content, list) else ()):
            for key in _KINDS:
                holder = part.get(key)
                url = holder.get("url") if isinstance(holder, dict) else holder
                if isinstance(url, str):
                    yield _Found(index, position, key, url)


def _replaced(messages: Sequence[Any], found: Sequence[_Found], known: Mapping[str, str]) -> list[Any]:
    """A copy as far down as something changes."""
    changed = list(messages)
    for part in found:
        message = changed[part.message]
        content = list(message["content"])
        holder = content[part.part][part.key]
        url = known[part.url]
        content[part.part] = {**content[part.part], part.key: {**holder, "url": url} if isinstance(holder, dict) else url}
        changed[part.message] = {**message, "content": content}
    return changed
