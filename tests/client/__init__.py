"""Tests of `timestamp_echo.client`."""
