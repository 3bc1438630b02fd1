"""IP addresses as text, and as what counts as one peer.

Pure: knows the text of an address, and no socket, no reactor, no name service.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address


def host_port(host: str, port: int) -> str:
    """A host and a port, an IPv6 address in brackets: `[2001:db8::1]:3000` (RFC 3986, 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_ip(host: str) -> IPv4Address | IPv6Address:
    """Read an address, without its scope; an IPv4-mapped one (RFC 4291, 2.5.5.2) as IPv4.

    @raise ValueError: it is no IP address.
    """
    ip = ip_address(host.partition("%")[0])
    return (isinstance(ip, IPv6Address) and ip.ipv4_mapped) or ip


def unmapped(host: str) -> str:
    """The same host, its address written as IPv4 if it is IPv4-mapped."""
    return str(parse_ip(host)) if host.startswith("::ffff:") else host


def peer_key(host: str) -> bytes:
    """What counts as one peer: an IPv4 address, or an IPv6 /64, which is one subscriber's.

    @raise ValueError: it is no IP address.
    """
    ip = parse_ip(host)
    return ip.packed if ip.version == 4 else ip.packed[:8]


def network_key(host: str) -> bytes:
    """What counts as one source of datagrams, which anyone may forge: an IPv4 /24, an IPv6 /64.

    @raise ValueError: it is no IP address.
    """
    ip = parse_ip(host)
    return ip.packed[: 3 if ip.version == 4 else 8]
