"""Which proxy is taken, from the address, the variables and the setting."""

from __future__ import annotations

import base64

import pytest

from adapters.proxies import DIRECT, Proxy, proxy_for

HTTPS, HTTP = {"HTTPS_PROXY": "http://secure:1"}, {"HTTP_PROXY": "http://plain:2"}


@pytest.mark.parametrize(
    ("url", "environ", "expected"),
    [
        ("https://api.example.org/v1", {}, None),
        ("https://api.example.org/v1", HTTPS | HTTP, Proxy("secure", 1)),
        ("http://api.example.org/v1", HTTPS | HTTP, Proxy("plain", 2)),
        ("https://api.example.org/v1", HTTP, None),
        ("https://api.example.org/v1", {"ALL_PROXY": "http://any:3"}, Proxy("any", 3)),
        ("https://api.example.org/v1", HTTPS | {"https_proxy": "http://lower:4"}, Proxy("lower", 4)),
        ("https://api.example.org/v1", {"HTTPS_PROXY": "bare"}, Proxy("bare", 80)),
        ("https://localhost:8000/v1", HTTPS, None),
        ("https://127.0.0.1:8000/v1", HTTPS, None),
        ("https://[::1]:8000/v1", HTTPS, None),
    ],
)
def test_the_variable_of_the_scheme_decides(url: str, environ: dict[str, str], expected: Proxy | None) -> None:
    assert proxy_for(url, environ) == expected


@pytest.mark.parametrize(
    ("no_proxy", "direct"),
    [
        ("*", True),
        ("example.org", True),
        (".example.org", True),
        ("*.example.org", True),
        ("other.org, api.example.org", True),
        ("API.EXAMPLE.ORG", True),
        ("api.example.org:443", True),
        ("api.example.org:8443", False),
        ("ample.org", False),
        ("10.0.0.0/8", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_no_proxy_names_hosts_and_domains(no_proxy: str, direct: bool, name: str) -> None:
    found = proxy_for("https://api.example.org/v1", HTTPS | {name: no_proxy})
    assert (found is None) is direct


def test_no_proxy_names_networks() -> None:
    environ = HTTP | {"NO_PROXY": "10.0.0.0/8,192.168.1.1"}
    found = [proxy_for(f"http://{address}/v1", environ) is None for address in ("10.1.2.3", "192.168.1.1", "192.168.1.2")]
    assert found == [True, True, False]


def test_a_setting_goes_over_the_variables() -> None:
    environ = HTTPS | {"NO_PROXY": "*"}
    assert proxy_for("https://api.example.org/v1", environ, "http://mine:9") == Proxy("mine", 9)
    assert proxy_for("https://api.example.org/v1", HTTPS, DIRECT) is None


def test_credentials_go_into_a_header_and_are_not_shown() -> None:
    proxy = proxy_for("https://api.example.org/v1", {"HTTPS_PROXY": "http://us%40er:p%3Ass@gate:3128"})
    assert proxy is not None
    assert proxy.authorization == f"Basic {base64.b64encode(b'us@er:p:ss').decode()}"
    assert (proxy.where, "Basic" in repr(proxy)) == ("http://gate:3128", False)


@pytest.mark.parametrize("address", ["socks5://user:secret@gate:1", "https://user:secret@gate:1", "http://user:secret@gate:x", "http://"])
def test_what_is_no_http_proxy_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(ValueError, match="HTTPS_PROXY must be the http:// address of a proxy") as caught:
        proxy_for("https://api.example.org/v1", {"HTTPS_PROXY": address})
    assert "secret" not in str(caught.value)
