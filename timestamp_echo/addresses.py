"""IP addresses as text, and the network that each belongs to.

Knows no socket, no reactor and no name resolution.
"""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)


def host_port(host: str, port: int) -> str:
    """Join a host and a port, an IPv6 address in brackets (RFC 3986, section 3.2.2).

    @return: as in `192.0.2.1:3000` and `[2001:db8::1]:3000`.
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_ip(host: str) -> IPv4Address | IPv6Address:
    """Parse an IP address, without its zone (RFC 4007, section 11: `%eth0`).

    @return: the address; for an IPv4-mapped one (RFC 4291, section 2.5.5.2: `::ffff:192.0.2.1`)
        the IPv4 address in it.
    @raise ValueError: the host is no IP address.
    """
    ip = ip_address(host.partition("%")[0])
    return (isinstance(ip, IPv6Address) and ip.ipv4_mapped) or ip


def parse_network(text: str) -> IPv4Network | IPv6Network:
    """Parse an IP network, such as `192.0.2.0/24`; an address alone is a network of one.

    @return: the network; for one of IPv4-mapped addresses, the IPv4 network that they stand for.
    @raise ValueError: the text is not a network, or its address has host bits set.
    """
    network = ip_network(text)
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - 96))
    return network


def unmapped(host: str) -> str:
    """Write an IPv4-mapped address as IPv4, as people know it; leave any other host alone."""
    return str(parse_ip(host)) if host.startswith("::ffff:") else host


def peer_key(host: str) -> bytes:
    """Identify a peer by its IPv4 address, or by the /64 of its IPv6 address.

    One IPv6 subscriber has at least a /64 and may use any address in it (RFC 6177).

    @return: 4 or 8 bytes.
    @raise ValueError: the host is no IP address.
    """
    ip = parse_ip(host)
    return ip.packed if ip.version == 4 else ip.packed[:8]


def network_key(host: str) -> bytes:
    """Identify the network of a datagram's source: its IPv4 /24, or its IPv6 /64.

    An attacker can forge any address in a victim's network, so a limit per address would not
    limit the replies that reach the network.

    @return: 3 or 8 bytes.
    @raise ValueError: the host is no IP address.
    """
    ip = parse_ip(host)
    return ip.packed[: 3 if ip.version == 4 else 8]
