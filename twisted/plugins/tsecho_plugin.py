"""Makes `twistd tsecho` known to Twisted."""

from twisted.application.service import ServiceMaker

tsecho = ServiceMaker(
    "tsecho",
    "timestamp_echo.tap",
    "Timestamp echo: every message back with the moment it arrived.",
    "tsecho",
)
