"""Measure how exact stamps and timers are on a saturated server: `python -m benchmarks.moments`.

A hundred connections keep the server's core busy. Meanwhile one more sends a message every 5 ms
and subtracts the time of sending from the stamp of the reply: both are times of the same host, so
the difference is the server's delay. The server runs once with the kernel's arrival times, and
once reading the clock when it reads the bytes. A timer in the server that is due every 10 ms
records how late it is called.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from twisted.internet.endpoints import serverFromString

from benchmarks.servers import Load, Server, built
from timestamp_echo.server.protocol import TimestampEchoFactory
from timestamp_echo.stamps import Stamp, parse
from timestamp_echo.transports.reactor import ReactorAdapter

INTERVAL = 0.010
"""Seconds from one call of the timer to the next."""


def serve(kernel_times: bool) -> None:
    """Run the server until SIGTERM; then print how late each timer was, in seconds, as JSON."""
    from twisted.internet import reactor

    running: Any = reactor
    delays: list[float] = []
    due = time.monotonic() + INTERVAL

    def tick() -> None:
        nonlocal due
        delays.append(time.monotonic() - due)
        due = time.monotonic() + INTERVAL
        running.callLater(INTERVAL, tick)

    def announce(port: Any) -> None:
        print(f"listening on {port.getHost().port}", flush=True)

    streams = ReactorAdapter(running, kernel_times)
    endpoint = serverFromString(streams, "tcp:0:interface=127.0.0.1")
    endpoint.listen(TimestampEchoFactory(Stamp("unix"))).addCallback(announce)
    running.callLater(INTERVAL, tick)
    running.run()
    print(json.dumps(delays))


def stamp_delays(port: int, seconds: float) -> list[float]:
    """Send messages for some seconds; the delay of each, from its sending to its stamp."""
    delays: list[float] = []
    end = time.monotonic() + seconds
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while not delays or time.monotonic() < end:
            sent = time.time_ns()
            sock.sendall(b"when?\n")
            stamp = sock.recv(100)[1:].partition(b"]")[0].decode()
            delays.append((parse(stamp).nanoseconds - sent) / 1e9)
            time.sleep(0.005)
    return delays


def main() -> None:
    """Measure both, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.moments", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--serve", choices=("kernel", "read"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve == "kernel")
        return
    server_core, load_core = sorted(os.sched_getaffinity(0))[:2]
    print(f"{'microseconds':44}{'p50':>9}{'p99':>9}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        load = built(folder, "load")["load"]
        for kind, source in (("kernel", "the kernel's time"), ("read", "read with the bytes")):
            log = folder / "log"
            command = [sys.executable, "-m", "benchmarks.moments", "--serve", kind]
            with Server(command, log, server_core) as server:
                talk = ("talk", arguments.seconds, server.port, "100", "100", "1", "64")
                with Load(load, load_core, *talk) as client:
                    client.start()
                    delays = stamp_delays(server.port, arguments.seconds)
                row(f"stamp after sending, {source}", delays)
                server.stop(signal.SIGTERM)
                row("timer of 10 ms, late", json.loads(log.read_text().splitlines()[-1]))


def row(name: str, values: list[float]) -> None:
    """One line of the table."""
    ordered = sorted(values)
    p50, p99 = (ordered[int(part * (len(ordered) - 1))] * 1e6 for part in (0.5, 0.99))
    print(f"{name:44}{p50:9.0f}{p99:9.0f}")


if __name__ == "__main__":
    main()
