"""The same job without any framework: `bare.py PORT`.

One epoll(7), a read and a write for each message; no limits, timeouts, counts or log, and no way
to stop. It shows what Python itself costs: the lower bound for a server in pure Python.
"""

from __future__ import annotations

import select
import socket
import sys

from stamping import Stamper


class Connection:
    """One connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._stamper = Stamper()
        self._rest = b""
        self.sock = sock
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def readable(self) -> int:
        """Answer what has arrived; return the event to wait for, or 0 at the end."""
        data = self.sock.recv(65536)
        if not data:
            return 0
        reply = self._stamper.stamped(data)
        try:
            sent = self.sock.send(reply)
        except BlockingIOError:
            sent = 0
        if sent == len(reply):
            return select.EPOLLIN
        self._rest = reply[sent:]
        return select.EPOLLOUT

    def writable(self) -> int:
        """Send the rest of a reply; return the event to wait for."""
        self._rest = self._rest[self.sock.send(self._rest) :]
        return select.EPOLLOUT if self._rest else select.EPOLLIN


def serve(listener: socket.socket) -> None:
    """Serve all connections, without end."""
    listener.setblocking(False)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    connections: dict[int, Connection] = {}
    while True:
        for number, event in epoll.poll():
            if number == listener.fileno():
                try:
                    sock, _ = listener.accept()
                except OSError:  # the client has gone
                    continue
                connections[sock.fileno()] = Connection(sock)
                epoll.register(sock, select.EPOLLIN)
                continue
            connection = connections[number]
            try:
                then = connection.writable() if event == select.EPOLLOUT else connection.readable()
            except OSError:
                then = 0
            if not then:
                del connections[number]
                connection.sock.close()
            elif event != then:
                epoll.modify(number, then)


port = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096)
print(f"listening on {port.getsockname()[1]}", flush=True)
serve(port)
