"""An upstream behind a proxy, with a private authority, or one that asks for a certificate: all of it over real sockets."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme

from adapters.base import ChatCall, Source, Timeouts
from adapters.endpoint import Endpoint
from adapters.errors import UpstreamError
from adapters.network import Network
from adapters.proxies import Proxy
from tests.scripted_upstream import ScriptedUpstream, answering, scripted_upstream

HOST = "upstream.test"  # a name that only the proxy can resolve: who gets there went through it


@dataclass
class ProxyServer:
    """Sends every request to `target`, whatever host it names. asked: the heads that came. refusal: answered instead, if set."""

    target: int
    port: int = 0
    refusal: int = 0
    silent: bool = False
    asked: list[bytes] = field(default_factory=list)
    tunnels: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.asked.append(head)
            if self.silent:
                await reader.read()
                return
            if self.refusal:
                writer.write(b"HTTP/1.1 %d No\r\ncontent-length: 2\r\n\r\nno" % self.refusal)
                return
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self.target)
            if head.startswith(b"CONNECT "):
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                upstream_writer.write(head)
            self.tunnels += 1
            await asyncio.gather(_copy(reader, upstream_writer), _copy(upstream_reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    @property
    def proxy(self) -> Proxy:
        return Proxy("127.0.0.1", self.port, "Basic c2VjcmV0")


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def proxy_server(target: int) -> AsyncIterator[ProxyServer]:
    proxy = ProxyServer(target)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()


@dataclass
class Authority:
    """A private certificate authority, its file, and a server that it vouches for."""

    ca: trustme.CA
    file: Path

    @asynccontextmanager
    async def upstream(self, *, asks_for_certificate: bool = False) -> AsyncIterator[ScriptedUpstream]:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.ca.issue_cert(HOST, "localhost", "127.0.0.1").configure_cert(context)
        if asks_for_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
            self.ca.configure_trust(context)
        async with scripted_upstream(answering("Hel", "lo")) as upstream:
            server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, ssl=context)
            upstream.port = server.sockets[0].getsockname()[1]
            try:
                yield upstream
            finally:
                server.close()
                while upstream.open_connections:  # they end when the endpoint has closed its side
                    await asyncio.sleep(0.001)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return Authority(ca, tmp_path / "ca.pem")


class Taker:
    """A Client that keeps what it gets."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, frames: bytes, source: Source) -> None:
        self.data += frames


@asynccontextmanager
async def endpoint_at(url: str, network: Network, timeouts: Timeouts | None = None) -> AsyncIterator[Endpoint]:
    endpoint = Endpoint("lab", url, "sk-key", timeouts or Timeouts(), network=network)
    try:
        yield endpoint
    finally:
        endpoint.close()


async def answer_of(endpoint: Endpoint) -> bytes:
    taker = Taker()
    body = b'{"model":"m","stream":true}'
    await endpoint.stream("/chat/completions", body, ChatCall(body, json.loads(body), "req_1"), taker)
    return taker.data


async def failure_at(url: str, network: Network, timeouts: Timeouts | None = None) -> UpstreamError:
    async with endpoint_at(url, network, timeouts) as endpoint:
        with pytest.raises(UpstreamError) as caught:
            await answer_of(endpoint)
    return caught.value


async def test_a_tls_upstream_is_reached_through_a_tunnel_that_is_kept(authority: Authority) -> None:
    async with authority.upstream() as upstream, proxy_server(upstream.port) as proxy:
        async with endpoint_at(f"https://{HOST}/v1", Network(proxy.proxy, authority.file)) as endpoint:
            assert b'"Hel"' in await answer_of(endpoint)
            assert (await answer_of(endpoint)).endswith(b"data: [DONE]\n\n")
        assert [head.splitlines()[0] for head in proxy.asked] == [b"CONNECT upstream.test:443 HTTP/1.1"]
        assert b"proxy-authorization: Basic c2VjcmV0" in proxy.asked[0]
        assert b"sk-key" not in proxy.asked[0]
        assert [request.path for request in upstream.asked] == ["/v1/chat/completions"] * 2
        assert all("proxy-authorization" not in request.headers for request in upstream.asked)


async def test_an_upstream_without_tls_gets_its_request_from_the_proxy() -> None:
    async with scripted_upstream(answering("Hel", "lo")) as upstream, proxy_server(upstream.port) as proxy:
        async with endpoint_at(f"http://{HOST}:8080/v1", Network(proxy.proxy)) as endpoint:
            assert b'"Hel"' in await answer_of(endpoint)
        assert proxy.asked[0].startswith(b"POST http://upstream.test:8080/v1/chat/completions HTTP/1.1\r\n")
        assert b"proxy-authorization: Basic c2VjcmV0" in proxy.asked[0]
        assert upstream.asked[0].headers["host"] == "upstream.test:8080"


@pytest.mark.parametrize("status", [403, 407, 502])
async def test_a_proxy_that_refuses_is_named_with_its_status_and_without_its_password(authority: Authority, status: int) -> None:
    async with authority.upstream() as upstream, proxy_server(upstream.port) as proxy:
        proxy.refusal = status
        error = await failure_at(f"https://{HOST}/v1", Network(proxy.proxy, authority.file))
    assert (error.status, error.code, error.fallback) == (502, "upstream_unreachable", True)
    where = f"https://{HOST} through the proxy http://127.0.0.1:{proxy.port}"
    assert error.message.startswith(f"upstream 'lab' cannot be reached at {where}: the proxy refused the tunnel with HTTP {status}")
    assert "c2VjcmV0" not in repr(error)
    assert ("user:password@" in error.message) is (status == 407)


async def test_a_proxy_that_is_not_there_is_named() -> None:
    async with proxy_server(0) as proxy:
        pass
    for url in (f"https://{HOST}/v1", f"http://{HOST}/v1"):
        error = await failure_at(url, Network(proxy.proxy))
        assert (error.status, error.code) == (502, "upstream_unreachable")
        assert f"through the proxy http://127.0.0.1:{proxy.port}: " in error.message


async def test_a_silent_proxy_counts_against_the_time_to_connect() -> None:
    async with proxy_server(0) as proxy:
        proxy.silent = True
        error = await failure_at(f"https://{HOST}/v1", Network(proxy.proxy), Timeouts(connect_s=0.1))
    assert (error.status, error.code) == (504, "upstream_timeout")


async def test_a_proxys_answer_that_is_not_http_is_refused() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    error = await failure_at(f"https://{HOST}/v1", Network(Proxy("127.0.0.1", server.sockets[0].getsockname()[1])))
    server.close()
    assert error.code == "upstream_unreachable"
    assert "not HTTP" in error.message


async def test_a_private_authority_is_trusted_only_where_it_is_named(authority: Authority, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    async with authority.upstream() as upstream:
        url = f"https://localhost:{upstream.port}/v1"
        async with endpoint_at(url, Network(ca_file=authority.file)) as endpoint:
            assert b'"Hel"' in await answer_of(endpoint)
        for network in (Network(), Network(ca_file=tmp_path / "other.pem")):
            error = await failure_at(url, network)
            assert (error.status, error.code, error.fallback) == (502, "upstream_unreachable", True)
            assert "certificate verify failed" in error.message
            assert "ca_file" in error.message
    assert len(upstream.asked) == 1


@pytest.mark.parametrize("together", [True, False])
async def test_an_upstream_that_asks_for_a_certificate_gets_ours(authority: Authority, tmp_path: Path, together: bool) -> None:
    ours = authority.ca.issue_cert("tandem.test")
    cert, key = tmp_path / "client.pem", None if together else tmp_path / "client.key"
    if key is None:
        ours.private_key_and_cert_chain_pem.write_to_path(str(cert))
    else:
        ours.cert_chain_pems[0].write_to_path(str(cert))
        ours.private_key_pem.write_to_path(str(key))
    async with authority.upstream(asks_for_certificate=True) as upstream:
        url = f"https://localhost:{upstream.port}/v1"
        async with endpoint_at(url, Network(ca_file=authority.file, client_cert=cert, client_key=key)) as endpoint:
            assert b'"Hel"' in await answer_of(endpoint)
        assert (await failure_at(url, Network(ca_file=authority.file))).status == 502
    assert len(upstream.asked) == 1


@pytest.mark.parametrize("key", ["ca_file", "client_cert"])
@pytest.mark.parametrize("content", [None, "not PEM"])
async def test_a_file_that_cannot_be_used_is_named_in_every_answer(tmp_path: Path, key: str, content: str | None) -> None:
    path = tmp_path / "some.pem"
    if content is not None:
        path.write_text(content)
    network = Network(ca_file=path) if key == "ca_file" else Network(client_cert=path)
    error = await failure_at(f"https://{HOST}/v1", network)
    assert (error.status, error.code, error.fallback) == (502, "upstream_misconfigured", True)
    assert error.message.startswith(f"upstream 'lab': {key} {path} cannot be used: ")
