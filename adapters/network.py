"""How a hosted upstream is reached: through which proxy, whom to trust, and by which certificate to be known."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from adapters.proxies import Proxy


@dataclass(frozen=True, slots=True)
class Network:
    """ca_file: trusted beside the system's authorities. client_key None: the key stands in client_cert. All files are PEM.

    problem: why there is no way to the upstream at all, or None.
    """

    proxy: Proxy | None = None
    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    problem: str | None = None

    def tls_context(self) -> ssl.SSLContext:
        """A context that verifies the server. Raises OSError, which names the key and the file at fault."""
        context = ssl.create_default_context()
        if self.ca_file is not None:
            try:
                context.load_verify_locations(self.ca_file)
            except OSError as error:  # ssl.SSLError is one
                raise OSError(f"ca_file {self.ca_file} cannot be used: {_reason(error)}; it must be PEM certificates") from error
        if self.client_cert is not None:
            try:
                # An empty password: without one OpenSSL would ask for it on the terminal.
                context.load_cert_chain(self.client_cert, self.client_key, password="")
            except (OSError, ValueError) as error:
                files = f"client_cert {self.client_cert}" + (f" with client_key {self.client_key}" if self.client_key else "")
                advice = "they must be PEM, belong together, and the key must not be encrypted"
                raise OSError(f"{files} cannot be used: {_reason(error)}; {advice}") from error
        return context


DIRECT = Network()


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
