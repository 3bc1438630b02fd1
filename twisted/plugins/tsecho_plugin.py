"""Makes `twistd tsecho` known to Twisted."""

import signal

from twisted.application.service import ServiceMaker


class _EchoServiceMaker(ServiceMaker):
    """Takes care of signals as soon as it is known that this service is meant."""

    @property
    def options(self) -> object:
        """The service's command line, whose import takes a tenth of a second."""
        # Until the reactor runs, and the service has its own handlers: Ctrl-C ends the process,
        # without a traceback; SIGHUP, for which there is nothing to reload yet, does nothing.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return super().options


tsecho = _EchoServiceMaker(
    "tsecho",
    "timestamp_echo.tap",
    "Timestamp echo: every message back with the moment it arrived.",
    "tsecho",
)
