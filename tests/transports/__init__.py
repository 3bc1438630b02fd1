"""Tests of `timestamp_echo.transports` that open no sockets."""
