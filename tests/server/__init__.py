"""Tests of `timestamp_echo.server`."""
