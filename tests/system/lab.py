"""The lab that tsecho grew from: a blocking server and a blocking client.

As a student writes them: one connection at a time, `recv(1024)`, no newline, UTF-8.
"""

from __future__ import annotations

import socket
from time import ctime


def serve(listener: socket.socket) -> None:
    """Create, bind, listen (done); accept, talk, close."""
    while True:
        connection, _ = listener.accept()
        while data := connection.recv(1024):
            connection.send(f"[{ctime()}] {data.decode()}".encode())
        connection.close()


def ask(address: tuple[str, int], words: list[str]) -> list[str]:
    """Create, connect, talk, close: each word is sent as it is, and what comes is read."""
    client = socket.create_connection(address)
    replies = []
    for word in words:
        client.send(word.encode())
        replies.append(client.recv(1024).decode())
    client.close()
    return replies


if __name__ == "__main__":
    lab = socket.create_server(("127.0.0.1", 0))
    print(f"listening on {lab.getsockname()[1]}", flush=True)
    serve(lab)
