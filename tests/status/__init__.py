"""Tests of `timestamp_echo.status`."""
