"""Tests for `timestamp_echo.addresses`."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.addresses import (
    host_port,
    network_key,
    parse_ip,
    parse_network,
    peer_key,
    unmapped,
)


class AddressTests(SynchronousTestCase):
    """Addresses as text, and their networks."""

    def test_host_port(self) -> None:
        """An IPv6 address is put in brackets, which tell its colons from the port's."""
        self.assertEqual(host_port("192.0.2.1", 3000), "192.0.2.1:3000")
        self.assertEqual(host_port("2001:db8::1", 3000), "[2001:db8::1]:3000")
        self.assertEqual(host_port("localhost", 3000), "localhost:3000")

    def test_parse_ip(self) -> None:
        """A zone is left out; an IPv4-mapped address is the IPv4 address in it."""
        self.assertEqual(parse_ip("fe80::1%eth0"), IPv6Address("fe80::1"))
        self.assertEqual(parse_ip("::ffff:192.0.2.1"), IPv4Address("192.0.2.1"))
        self.assertEqual(parse_ip("192.0.2.1"), IPv4Address("192.0.2.1"))
        for host in ("localhost", "", "%eth0", "192.0.2.256", "[::1]"):
            self.assertRaises(ValueError, parse_ip, host)

    def test_parse_network(self) -> None:
        """An address is a network of one; IPv4-mapped networks are those of IPv4."""
        for text, meant in (
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("192.0.2.1", "192.0.2.1/32"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("2001:db8::/96", "2001:db8::/96"),
            ("::/0", "::/0"),
            ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
        ):
            self.assertEqual(parse_network(text), ip_network(meant))
        for text in ("192.0.2.1/24", "::ffff:192.0.2.1/120", "192.0.2.0/33", "localhost", ""):
            self.assertRaises(ValueError, parse_network, text)

    def test_unmapped(self) -> None:
        """Only an IPv4-mapped address changes; a zone stays."""
        self.assertEqual(unmapped("::ffff:192.0.2.1"), "192.0.2.1")
        for host in ("192.0.2.1", "2001:db8::1", "fe80::1%eth0", "::1", "localhost"):
            self.assertEqual(unmapped(host), host)

    def test_peer_key(self) -> None:
        """A peer is an IPv4 address, however it is written, or an IPv6 /64."""
        self.assertEqual(peer_key("192.0.2.1"), bytes([192, 0, 2, 1]))
        self.assertEqual(peer_key("2001:db8::1"), bytes.fromhex("20010db800000000"))
        self.assertEqual(peer_key("192.0.2.1"), peer_key("::ffff:192.0.2.1"))
        self.assertNotEqual(peer_key("192.0.2.1"), peer_key("192.0.2.2"))
        self.assertEqual(peer_key("2001:db8::1"), peer_key("2001:db8::ffff:0:0:2"))
        self.assertNotEqual(peer_key("2001:db8::1"), peer_key("2001:db8:0:1::1"))
        self.assertEqual(peer_key("fe80::1%eth0"), peer_key("fe80::2%eth0"))

    def test_network_key(self) -> None:
        """A network is an IPv4 /24, however the address is written, or an IPv6 /64."""
        self.assertEqual(network_key("192.0.2.1"), bytes([192, 0, 2]))
        self.assertEqual(network_key("2001:db8::1"), bytes.fromhex("20010db800000000"))
        self.assertEqual(network_key("192.0.2.1"), network_key("192.0.2.255"))
        self.assertEqual(network_key("192.0.2.1"), network_key("::ffff:192.0.2.9"))
        self.assertNotEqual(network_key("192.0.2.1"), network_key("192.0.3.1"))
        self.assertEqual(network_key("2001:db8::1"), network_key("2001:db8::ffff:0:0:1"))
        self.assertNotEqual(network_key("2001:db8::1"), network_key("2001:db8:0:1::1"))
