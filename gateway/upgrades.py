"""uvicorn's HTTP protocol, deaf to offers of HTTP/2.

Java's HttpClient and `curl --http2` send `Upgrade: h2c` with their first request, body included. A server may ignore the offer
(RFC 9110, 7.8), but httptools stops reading at it and the body would be lost: the header is taken out before it is parsed.
"""

from __future__ import annotations

import re

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_OFFER = re.compile(rb"\r\nupgrade:[ \t]*h2c[^\r\n]*", re.IGNORECASE)
_HEAD = 8192  # bytes of a request's first read that are looked at


class DeafToUpgrades(HttpToolsProtocol):
    """See the module."""

    def data_received(self, data: bytes) -> None:
        begins = self.cycle is None or self.cycle.response_complete
        if begins and b"h2c" in data[:_HEAD]:
            head, blank_line, body = data.partition(b"\r\n\r\n")
            data = _OFFER.sub(b"", head) + blank_line + body
        super().data_received(data)
