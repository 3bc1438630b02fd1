"""Tests for `timestamp_echo.client.command`; `tests/system` has those of the whole process."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import Listener
from timestamp_echo.client import errors
from timestamp_echo.client.command import _status
from timestamp_echo.client.session import StreamSession


class StatusTests(SynchronousTestCase):
    """The exit status of a session that failed."""

    def test_refused(self) -> None:
        """A refusal is no connection only if not one line was answered."""
        for refused, replies, status in (
            (True, b"", errors.UNREACHABLE),
            (True, b"[] a\n", errors.MISSING),
            (False, b"", errors.MISSING),
        ):
            session = StreamSession(Listener(), Clock())
            session.refused = refused
            session._replies.send(b"a\nb\n")
            session._replies.receive(replies)
            self.assertEqual(_status(session), status)
