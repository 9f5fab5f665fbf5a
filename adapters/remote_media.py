"""Pictures and videos behind URLs, fetched for engines that must not do so themselves.

The guard: a host's name is looked up once and the connection goes to an address that was judged (`adapters.addresses`), so a name that
answers differently a moment later leads nowhere else; each redirect is a new URL, judged like the first. What comes is bounded while
it comes. Proxies are not used: a proxy would look the name up itself.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from reprlib import repr as shown  # a client's URL in a message: its beginning is enough
from typing import Literal
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from adapters.addresses import fault_of
from adapters.connection import ConnectionLost, Headers, ProtocolError, UpstreamConnection
from adapters.errors import UpstreamError

Media = Literal["image", "video"]
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

MAX_REDIRECTS = 3
MAX_ADDRESSES = 3  # of one host that are tried
CONNECT_S = 3.0  # for each of them, TLS included
HEAD_ALLOWANCE = 64 << 10  # bytes of a reply beside its body: the head, and the sizes of its chunks
_AGENT = "tandem"


async def system_resolve(host: str, port: int) -> list[str]:
    """The addresses of a host as this machine knows them, best first. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(slots=True)
class Allowance:
    """Bytes that one request may still fetch, for all of its URLs together."""

    limit: int
    left: int

    @classmethod
    def of(cls, limit: int) -> Allowance:
        return cls(limit, limit)


class Problem(Exception):
    """Why a URL cannot be fetched, as the end of a sentence that begins with it."""

    def __init__(self, reason: str, code: str = "invalid_image_url") -> None:
        super().__init__(reason)
        self.reason, self.code = reason, code


@dataclass(frozen=True)
class RemoteMedia:
    """See the module. timeout_s: for one URL in all. private_hosts: names that may have a private address, lower case."""

    fetch: bool = True
    max_bytes: int = 20 << 20
    max_per_request: int = 8
    timeout_s: float = 10.0
    private_hosts: frozenset[str] = frozenset()
    resolve: Resolve = system_resolve
    tls: ssl.SSLContext | None = None  # for tests; None: the system's authorities

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return self.tls or ssl.create_default_context()

    async def data_url(self, url: str, kind: Media, param: str, allowance: Allowance) -> str:
        """What is behind `url` as a data: URL. Raises UpstreamError (400) that names `param`. Being cancelled closes the connection."""
        try:
            async with asyncio.timeout(self.timeout_s):
                body = await self._follow(url, allowance)
            found = media_type(body)
            if found is None or not found.startswith(kind):
                wanted = "a PNG, JPEG, GIF, WebP or BMP picture" if kind == "image" else "an MP4, WebM or Matroska video"
                raise Problem(f"is not {wanted}")
        except TimeoutError:
            raise _refused(url, param, Problem(f"was not there within {self.timeout_s:g} s", "image_url_timeout")) from None
        except Problem as problem:
            raise _refused(url, param, problem) from None
        return f"data:{found};base64,{base64.b64encode(body).decode()}"

    async def _follow(self, url: str, allowance: Allowance) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            reply = await self._get(_parts(url), allowance)
            if reply.location is None:
                return bytes(reply.body)
            try:
                url = urljoin(url, reply.location)
            except ValueError:
                raise Problem("leads on to what is not a URL") from None
        raise Problem(f"leads on through more than {MAX_REDIRECTS} redirects; send the address at their end")

    async def _get(self, url: SplitResult, allowance: Allowance) -> _Reply:
        host, tls = url.hostname or "", url.scheme == "https"
        port = url.port or (443 if tls else 80)
        addresses = await self._judged(host, port)
        try:
            connection = await _connect(addresses, port, self._tls if tls else None, host, allowance)
            try:
                reply = _Reply(connection, allowance)
                await connection.exchange(_request(url), reply)
                if reply.problem is not None:
                    raise reply.problem
            finally:
                connection.abort()
        except ssl.SSLError as error:
            raise Problem(f"has no certificate that can be trusted ({getattr(error, 'verify_message', error.reason)})") from None
        except OSError as error:
            raise Problem(f"cannot be reached ({error.strerror or str(error) or 'no answer'})") from None
        except ConnectionLost:
            raise Problem("ended before it was complete") from None
        except ProtocolError:
            raise Problem("does not answer in HTTP/1.1") from None
        return reply

    async def _judged(self, host: str, port: int) -> Sequence[str]:
        try:
            addresses = await self.resolve(host, port)
        except OSError:
            addresses = ()
        except UnicodeError:
            raise Problem("has a host that no name service knows") from None
        if not addresses:
            raise Problem("has a host that no name service knows")
        faults = {fault_of(address) for address in addresses}
        if "never" in faults or ("private" in faults and host.lower() not in self.private_hosts):
            advice = "send the picture itself as a data: URL, or name the host in remote_images.private_hosts"
            raise Problem(f"leads to an address that is not public; {advice}", "image_url_not_allowed")
        return addresses[:MAX_ADDRESSES]


_BEGINNINGS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
    (b"\x1aE\xdf\xa3", "video/webm"),
)


def media_type(body: bytes) -> str | None:
    """What a file is by its first bytes; what its server calls it does not count."""
    for beginning, name in _BEGINNINGS:
        if body.startswith(beginning):
            return name
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return "image/webp"
    if body[4:8] == b"ftyp" and body[8:12] not in (b"avif", b"heic", b"heif", b"mif1"):
        return "video/mp4"
    return None


def _parts(url: str) -> SplitResult:
    """Raises Problem for what is no address of a picture in the public web."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Problem("is not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Problem("is not an http://, https:// or data: URL", "unsupported_image_url")
    if parts.username is not None or parts.password is not None:
        raise Problem("holds a user or a password, which are not sent; use an address that needs none")
    if port == 0 or any(ord(letter) <= 32 or ord(letter) == 127 for letter in url):
        raise Problem("is not a URL")
    return parts


def _request(url: SplitResult) -> bytes:
    host = url.netloc.rpartition("@")[2]
    ascii_host = host if host.isascii() else host.encode("idna").decode()
    target = quote(url.path or "/", safe="/%:@!$&'()*+,;=~-._") + (f"?{quote(url.query, safe='/%:@!$&()*+,;=~-._?')}" if url.query else "")
    first, wanted = f"GET {target} HTTP/1.1", "accept: image/*, video/*\r\naccept-encoding: identity"
    return f"{first}\r\nhost: {ascii_host}\r\nuser-agent: {_AGENT}\r\n{wanted}\r\nconnection: close\r\n\r\n".encode("ascii")


async def _connect(addresses: Sequence[str], port: int, tls: ssl.SSLContext | None, host: str, allowance: Allowance) -> UpstreamConnection:
    """To the first address that takes it. Raises OSError, of the last one."""
    loop = asyncio.get_running_loop()
    failure = OSError("it has no address")
    for address in addresses:
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await loop.create_connection(
                    lambda: _Bounded(allowance), address, port, ssl=tls, server_hostname=host if tls else None
                )
        except OSError as error:
            failure = error
        else:
            return connection
    raise failure


class _Bounded(UpstreamConnection):
    """A connection that ends when more has come than the request may fetch, whatever it was: a head without end, for one."""

    def __init__(self, allowance: Allowance) -> None:
        super().__init__(lambda _: None)
        self._allowance, self._beside = allowance, HEAD_ALLOWANCE

    def data_received(self, data: bytes) -> None:
        before = self._allowance.left
        super().data_received(data)
        self._beside -= len(data) - (before - self._allowance.left)
        if self._beside < 0:
            self.fail(Problem("has more around its picture than a server needs to say"))


@dataclass
class _Reply:
    """Collects one. location: where a redirect leads. problem: why it will not do, whatever follows."""

    connection: UpstreamConnection
    allowance: Allowance
    location: str | None = None
    problem: Problem | None = None
    body: bytearray = field(default_factory=bytearray)

    def on_head(self, status: int, headers: Headers) -> None:
        found = dict(headers)
        if status in (301, 302, 303, 307, 308) and b"location" in found:
            self.location = found[b"location"].decode("utf-8", "replace")
        elif status != 200:
            self.problem = Problem(f"was answered with HTTP {status}")
        elif found.get(b"content-encoding", b"identity") != b"identity":
            self.problem = Problem("came compressed, though that was not asked for")
        elif int(found.get(b"content-length", b"0")) > self.allowance.left:
            self.problem = self._too_large()

    def on_data(self, data: bytes) -> None:
        self.allowance.left -= len(data)
        if self.allowance.left < 0:
            self.problem = self.problem or self._too_large()
        if self.problem is not None:
            self.connection.fail(self.problem)
        elif self.location is None:
            self.body += data

    def _too_large(self) -> Problem:
        what = f"is too large: the pictures of one request may have {self.allowance.limit} bytes together"
        return Problem(f"{what}; send smaller ones, or raise remote_images.max_bytes", "image_too_large")


def _refused(url: str, param: str, problem: Problem) -> UpstreamError:
    """The request itself is at fault: no other deployment is asked."""
    message = f"{param}: {shown(url)} {problem.reason}"
    return UpstreamError(400, message, problem.code, "invalid_request_error", param, fallback=False)
