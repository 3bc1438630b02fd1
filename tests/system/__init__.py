"""Tests with real processes and real sockets, and what they share."""
