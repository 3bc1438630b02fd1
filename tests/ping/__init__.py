"""Tests of `timestamp_echo.ping`."""
