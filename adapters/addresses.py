"""Which addresses a URL of a client may lead to: public ones. Pure.

The rule: an address is refused unless it is known to be public, and IPv6 that stands for an IPv4 address is judged as that.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Literal

# private: of this machine or its networks, which a configuration may allow. never: what no picture ever comes from.
Fault = Literal["private", "never"]

_PRIVATE = [IPv4Network(text) for text in ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
_PRIVATE_6 = [IPv6Network("fc00::/7"), IPv6Network("::1/128")]
# Services of clouds that tell a machine its secrets and are not link-local: Alibaba, Oracle (with the rest of its range), Azure; AWS.
_METADATA = [IPv4Network(text) for text in ("100.100.100.200/32", "192.0.0.0/24", "168.63.129.16/32")]
_METADATA_6 = IPv6Network("fd00:ec2::254/128")
_UNICAST_6 = IPv6Network("2000::/3")  # all that is given out; RFC 4291
_TUNNELS_6 = IPv6Network("2002::/16")  # 6to4 holds an IPv4 address, and nobody needs it any more
_TRANSLATED = IPv6Network("64:ff9b::/96")  # an IPv4 address behind NAT64; RFC 6052


def fault_of(address: str) -> Fault | None:
    """What speaks against a connection to this IPv4 or IPv6 address, or None."""
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv4Address):
        return _fault_4(found)
    inner = IPv4Address(int(found) & 0xFFFFFFFF) if found in _TRANSLATED else found.ipv4_mapped
    return _fault_6(found) if inner is None else _fault_4(inner)


def _fault_4(address: IPv4Address) -> Fault | None:
    if address.is_multicast or any(address in network for network in _METADATA):
        return "never"
    if any(address in network for network in _PRIVATE):
        return "private"
    return None if address.is_global else "never"


def _fault_6(address: IPv6Address) -> Fault | None:
    if any(address in network for network in _PRIVATE_6) and address not in _METADATA_6:
        return "private"
    return None if address in _UNICAST_6 and address not in _TUNNELS_6 and address.is_global else "never"
