"""The timestamp echo service: every message comes back with its arrival time in front of it.

The names in `__all__` are public and do not change within a major version; anything else may
change in any version. They are imported on first use (PEP 562), so that framings and stamps do not
need Twisted, and the client does not load the server.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "1.0.0"

__all__ = [
    "AutoFraming",
    "ChunkFraming",
    "DatagramPort",
    "Framing",
    "LineFraming",
    "Moment",
    "ReactorAdapter",
    "Stamp",
    "TimestampEcho",
    "TimestampEchoFactory",
    "__version__",
    "parse",
]

_MODULES = {
    **dict.fromkeys(("AutoFraming", "ChunkFraming", "Framing", "LineFraming"), "framing"),
    **dict.fromkeys(("Moment", "Stamp", "parse"), "stamps"),
    **dict.fromkeys(("TimestampEcho", "TimestampEchoFactory"), "server.protocol"),
    "ReactorAdapter": "transports.reactor",
    "DatagramPort": "transports.udp",
}

if TYPE_CHECKING:
    from timestamp_echo.framing import AutoFraming, ChunkFraming, Framing, LineFraming
    from timestamp_echo.server.protocol import TimestampEcho, TimestampEchoFactory
    from timestamp_echo.stamps import Moment, Stamp, parse
    from timestamp_echo.transports.reactor import ReactorAdapter
    from timestamp_echo.transports.udp import DatagramPort
else:

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
