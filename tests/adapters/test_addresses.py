"""Which addresses a client's URL may lead to."""

from __future__ import annotations

import pytest

from adapters.addresses import fault_of


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.215.14", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2001:4860::8888"]
)
def test_public_addresses_are_allowed(address: str) -> None:
    assert fault_of(address) is None


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "10.0.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "::1", "fc00::1",
        "fd12:3456::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
    ],
)  # fmt: skip
def test_addresses_of_this_machine_and_its_networks_are_private(address: str) -> None:
    assert fault_of(address) == "private"


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254", "169.254.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192", "0.0.0.0", "0.1.2.3",
        "255.255.255.255", "224.0.0.1", "239.255.255.250", "240.0.0.1", "198.18.0.1", "192.0.2.1", "203.0.113.5",
        "::", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "fd00:ec2::254", "2001:db8::1", "2001::1", "2002:7f00:1::",
        "100::1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "::127.0.0.1",
    ],
)  # fmt: skip
def test_nothing_else_is_ever_asked(address: str) -> None:
    assert fault_of(address) == "never"
