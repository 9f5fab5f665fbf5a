"""Pictures behind URLs: a real server, reached by whatever name and address the injected resolver says."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import trustme

from adapters.errors import UpstreamError
from adapters.remote_media import Allowance, RemoteMedia, media_type, system_resolve
from tests.scripted_upstream import Exchange, Request, ScriptedUpstream, scripted_upstream

PNG = b"\x89PNG\r\n\x1a\n" + b"a picture"
HOST = "pictures.test"
LOCAL = frozenset({HOST})


async def here(host: str, port: int) -> Sequence[str]:
    return ["127.0.0.1"]


def fetcher(**more: Any) -> RemoteMedia:
    """One that may fetch from this machine, under one name."""
    return RemoteMedia(**{"private_hosts": LOCAL, "resolve": here, "timeout_s": 5.0, **more})


def sends(body: bytes, **headers: str) -> Callable[[Request, Exchange], Awaitable[None]]:
    async def scenario(request: Request, exchange: Exchange) -> None:
        await exchange.head(200, content_length=str(len(body)), **headers)
        await exchange.raw(body)

    return scenario


def leads_to(*locations: str) -> Callable[[Request, Exchange], Awaitable[None]]:
    """One redirect after the other; after the last one, a picture."""
    left = list(locations)

    async def scenario(request: Request, exchange: Exchange) -> None:
        if not left:
            await sends(PNG)(request, exchange)
            return
        await exchange.head(302, location=left.pop(0), content_length="0")

    return scenario


async def fetched(media: RemoteMedia, url: str, allowance: Allowance | None = None, kind: Any = "image") -> str:
    return await media.data_url(url, kind, "messages[0].content[1].image_url", allowance or Allowance.of(media.max_bytes))


async def refusal(media: RemoteMedia, url: str, **more: Any) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await fetched(media, url, **more)
    assert (caught.value.status, caught.value.param, caught.value.fallback) == (400, "messages[0].content[1].image_url", False)
    return caught.value


def url_of(server: ScriptedUpstream, path: str = "/a.png") -> str:
    return f"http://{HOST}:{server.port}{path}"


async def test_a_picture_comes_as_what_it_is_and_not_as_what_its_server_calls_it() -> None:
    async with scripted_upstream(sends(PNG, content_type="text/html")) as server:
        found = await fetched(fetcher(), url_of(server, "/a b%20c/ü.png?x=1&y=%2F#part").replace(" ", "%20"))
        assert found == "data:image/png;base64," + base64.b64encode(PNG).decode()
        asked = server.asked[0]
        assert (asked.method, asked.path) == ("GET", "/a%20b%20c/%C3%BC.png?x=1&y=%2F")
        assert asked.headers["host"] == f"{HOST}:{server.port}"
        assert not {"authorization", "cookie", "x-request-id"} & asked.headers.keys()
        assert server.open_connections == 0 or await asyncio.wait_for(_closed(server), 2)


async def _closed(server: ScriptedUpstream) -> bool:
    while server.open_connections:
        await asyncio.sleep(0.01)
    return True


async def test_a_name_is_looked_up_once_and_the_connection_goes_where_that_said() -> None:
    lookups: list[str] = []

    async def rebinds(host: str, port: int) -> Sequence[str]:
        lookups.append(host)
        return ["127.0.0.1"] if len(lookups) == 1 else ["169.254.169.254"]

    async with scripted_upstream(sends(PNG)) as server:
        assert (await fetched(fetcher(resolve=rebinds), url_of(server))).startswith("data:image/png")
    assert lookups == [HOST]


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["10.0.0.5"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"], ["::1"], ["169.254.169.254"], ["fd00:ec2::254"]],
)
async def test_an_address_that_is_not_public_is_never_asked(addresses: list[str]) -> None:
    async def inward(host: str, port: int) -> Sequence[str]:
        return addresses

    async with scripted_upstream(sends(PNG)) as server:
        error = await refusal(fetcher(private_hosts=frozenset(), resolve=inward), url_of(server))
        assert error.code == "image_url_not_allowed"
        assert "leads to an address that is not public" in error.message
        assert not any(address in error.message for address in addresses)
        assert server.connections == 0


async def test_a_host_that_may_be_private_is_still_no_metadata_service() -> None:
    async def metadata(host: str, port: int) -> Sequence[str]:
        return ["169.254.169.254"]

    assert (await refusal(fetcher(resolve=metadata), f"http://{HOST}/latest/meta-data")).code == "image_url_not_allowed"


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "127.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"])
async def test_every_spelling_of_this_machine_is_seen_through(host: str) -> None:
    async with scripted_upstream(sends(PNG)) as server:
        await refusal(RemoteMedia(resolve=system_resolve), f"http://{host}:{server.port}/a.png")
        assert server.connections == 0


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://pictures.test/a.png", "is not an http://, https:// or data: URL"),
        ("file:///etc/passwd", "is not an http://, https:// or data: URL"),
        ("//pictures.test/a.png", "is not an http://, https:// or data: URL"),
        ("http:///a.png", "is not an http://, https:// or data: URL"),
        ("http://user:secret@pictures.test/a.png", "holds a user or a password"),
        ("http://user@pictures.test/a.png", "holds a user or a password"),
        ("http://pictures.test:99999/a.png", "is not a URL"),
        ("http://pictures.test/a\r\nx: y", "is not a URL"),
        ("http://[::1/a.png", "is not a URL"),
    ],
)
async def test_what_is_no_address_in_the_web_is_refused_by_its_form(url: str, says: str) -> None:
    assert says in (await refusal(fetcher(), url)).message


async def test_redirects_are_followed_and_each_is_judged_anew() -> None:
    async with scripted_upstream(leads_to("/b.png", "c.png")) as server:
        await fetched(fetcher(), url_of(server, "/x/a.png"))
        assert [asked.path for asked in server.asked] == ["/x/a.png", "/b.png", "/c.png"]
    for inward in ("http://127.0.0.1/a.png", "file:///etc/passwd", "http://user@pictures.test/", "http://[x"):
        async with scripted_upstream(leads_to(inward)) as server:
            error = await refusal(fetcher(), url_of(server))
            assert "127.0.0.1/" not in error.message
            assert len(server.asked) == 1
    async with scripted_upstream(leads_to(*["/again"] * 4)) as server:
        assert "more than 3 redirects" in (await refusal(fetcher(), url_of(server))).message
        assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("body", "headers", "says"),
    [
        (b"<html>secret of the intranet</html>", {"content_type": "image/png"}, "is not a PNG, JPEG, GIF, WebP or BMP picture"),
        (b"", {}, "is not a PNG"),
        (PNG, {"content_encoding": "gzip"}, "came compressed"),
    ],
)
async def test_what_is_no_picture_is_refused(body: bytes, headers: dict[str, str], says: str) -> None:
    async with scripted_upstream(sends(body, **headers)) as server:
        error = await refusal(fetcher(), url_of(server))
        assert says in error.message
        assert "secret of the intranet" not in error.message


async def test_a_servers_refusal_is_told() -> None:
    async def gone(request: Request, exchange: Exchange) -> None:
        await exchange.json(404, {"detail": "secret"})

    async with scripted_upstream(gone) as server:
        error = await refusal(fetcher(), url_of(server))
        assert "was answered with HTTP 404" in error.message
        assert "secret" not in error.message
    assert "cannot be reached" in (await refusal(fetcher(), f"http://{HOST}:1/a.png")).message
    assert "no name service knows" in (await refusal(RemoteMedia(), "http://picture.invalid/a.png")).message


async def endless(request: Request, exchange: Exchange) -> None:
    await exchange.head(200, transfer_encoding="chunked")
    await exchange.chunk(PNG)
    while True:
        await exchange.chunk(b"x" * 65536)


async def endless_head(request: Request, exchange: Exchange) -> None:
    await exchange.raw(b"HTTP/1.1 200 OK\r\n")
    while True:
        await exchange.raw(b"x-more: " + b"y" * 65536 + b"\r\n")


async def test_what_has_no_end_is_cut_off_at_the_limit() -> None:
    async with scripted_upstream(endless) as server:
        error = await refusal(fetcher(max_bytes=200_000), url_of(server))
        assert error.code == "image_too_large"
        assert "may have 200000 bytes together" in error.message
    async with scripted_upstream(endless_head) as server:
        assert "more around its picture" in (await refusal(fetcher(), url_of(server))).message


async def test_a_size_that_is_announced_is_refused_before_it_comes() -> None:
    async def announces(request: Request, exchange: Exchange) -> None:
        await exchange.head(200, content_length="99999999")
        await exchange.raw(PNG)
        await exchange.until_left()

    async with scripted_upstream(announces) as server:
        assert (await refusal(fetcher(), url_of(server))).code == "image_too_large"


async def test_all_pictures_of_a_request_have_one_allowance() -> None:
    allowance = Allowance.of(len(PNG) + 3)
    async with scripted_upstream(sends(PNG)) as server:
        await fetched(fetcher(), url_of(server), allowance)
        assert (await refusal(fetcher(), url_of(server), allowance=allowance)).code == "image_too_large"


async def silent(request: Request, exchange: Exchange) -> None:
    await exchange.until_left()


async def test_a_server_that_says_nothing_is_left_after_the_time_limit() -> None:
    async with scripted_upstream(silent) as server:
        error = await refusal(fetcher(timeout_s=0.1), url_of(server))
        assert error.code == "image_url_timeout"
        assert "within 0.1 s" in error.message
        assert await asyncio.wait_for(_closed(server), 2)


async def test_being_cancelled_closes_the_connection() -> None:
    async with scripted_upstream(silent) as server:
        fetching = asyncio.create_task(fetched(fetcher(), url_of(server)))
        while not server.asked:
            await asyncio.sleep(0.01)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        assert await asyncio.wait_for(_closed(server), 2)


async def test_the_next_address_is_tried_where_the_first_does_not_answer() -> None:
    async def two(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.2", "127.0.0.1"]

    async with scripted_upstream(sends(PNG)) as server:
        await fetched(fetcher(resolve=two), url_of(server))


async def test_tls_is_checked_against_the_name_though_the_address_is_dialled() -> None:
    authority = trustme.CA()
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(PNG), PNG))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_side)
    port = server.sockets[0].getsockname()[1]
    trusting = fetcher(tls=client_side, private_hosts=frozenset({HOST, "other.test"}))
    async with server:
        assert (await fetched(trusting, f"https://{HOST}:{port}/a.png")).startswith("data:image/png")
        assert "no certificate that can be trusted" in (await refusal(trusting, f"https://other.test:{port}/a.png")).message
        assert "no certificate that can be trusted" in (await refusal(replace(trusting, tls=None), f"https://{HOST}:{port}/a.png")).message


@pytest.mark.parametrize(
    ("beginning", "name"),
    [
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"BM", "image/bmp"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (b"\0\0\0\x20ftypisom", "video/mp4"),
        (b"\x1aE\xdf\xa3", "video/webm"),
        (b"\0\0\0\x20ftypavif", None),
        (b"RIFF\0\0\0\0WAVE", None),
        (b"%PDF-1.7", None),
    ],
)
def test_files_are_known_by_their_first_bytes(beginning: bytes, name: str | None) -> None:
    assert media_type(beginning + b"rest") == name


async def test_a_video_is_no_picture_and_a_picture_no_video() -> None:
    async with scripted_upstream(sends(PNG)) as server:
        assert "is not an MP4, WebM or Matroska video" in (await refusal(fetcher(), url_of(server), kind="video")).message
    async with scripted_upstream(sends(b"\0\0\0\x20ftypisom")) as server:
        assert (await fetched(fetcher(), url_of(server), kind="video")).startswith("data:video/mp4;base64,")
