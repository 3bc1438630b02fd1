"""Tests of the page of `--status`: a real service and a real browser.

They need Chromium and its driver, and the Python packages selenium and axe-core-python.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from operator import lt
from pathlib import Path
from typing import Any, TypeVar, cast
from unittest import SkipTest

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, LoopingCall
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.system.running import PATIENCE, STAMP, Case, Service, faketime, needs
from tests.system.test_status import STATUS, TCP, metrics, status_port
from timestamp_echo.server.protocol import TimestampEchoFactory
from timestamp_echo.status.metrics import Metrics
from timestamp_echo.status.page import INTERVAL, add_page
from timestamp_echo.status.site import StatusSite

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    "--disable-dev-shm-usage",  # containers have little of it
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

REQUEST = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"

AXE = """
const done = arguments[0];
const found = (rule) => `${rule.impact}: ${rule.id}: ${rule.nodes.map((node) => node.html)}`;
axe.run().then((results) => done(results.violations.map(found)), (error) => done([`${error}`]));
"""

SOURCES = """
window.sources = [];
window.EventSource = class extends EventSource {
  constructor(url) {
    super(url);
    window.sources.push(this);
  }
};
"""
"""Runs before the page's own script: the streams that it opens are in `sources`."""

T = TypeVar("T")


class Browser:
    """Chromium, without a window.

    @param case: the test, at whose end it is ended.
    @raise SkipTest: something that it needs is not installed.
    """

    def __init__(self, case: Case) -> None:
        chromium, driver = needs("chromium"), needs("chromedriver")
        if find_spec("selenium") is None:
            raise SkipTest("selenium is not installed")
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service as Driver

        profile = tempfile.mkdtemp()
        case.addCleanup(shutil.rmtree, profile, True)
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (*FLAGS, f"--user-data-dir={profile}", "--window-size=1000,900"):
            options.add_argument(flag)
        self.driver = webdriver.Chrome(options=options, service=Driver(driver))
        case.addCleanup(self.driver.quit)
        self.driver.set_page_load_timeout(PATIENCE)
        self.driver.set_script_timeout(PATIENCE)

    def open(self, service: Service) -> None:
        """Load the page."""
        self.driver.get(f"http://127.0.0.1:{status_port(service)}/")

    def set(self, command: str, **parameters: Any) -> None:
        """Emulate something, see the DevTools protocol."""
        self.driver.execute_cdp_cmd(f"Emulation.{command}", parameters)

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript's."""
        return self.driver.execute_script(f"return {script}")

    def text(self, selector: str) -> str:
        """The text of an element, as it is shown."""
        text: str = self.driver.find_element("css selector", selector).text
        return text

    def figure(self, name: str) -> str:
        """A figure, as it is shown."""
        return self.text(f"[data-figure={name}] td")

    def press(self, *keys: str) -> None:
        """Press these keys, wherever the focus is."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def wait(self, what: Callable[[], T], expected: Callable[[T], Any]) -> T:
        """Wait until this is what is expected, and return it."""
        from selenium.common.exceptions import TimeoutException
        from selenium.webdriver.support.wait import WebDriverWait

        found: list[T] = []

        def look(_: object) -> bool:
            found[:] = [what()]
            return bool(expected(found[0]))

        try:
            WebDriverWait(self.driver, PATIENCE, 0.05).until(look)
        except TimeoutException:
            raise AssertionError(f"it was {found[0]!r} to the end") from None
        return found[0]

    def wait_for(self, selector: str, pattern: str) -> str:
        """Wait until an element's text matches this."""
        return self.wait(lambda: self.text(selector), lambda text: re.search(pattern, text))

    def violations(self) -> list[str]:
        """What axe finds: each with its impact, its rule, and where it is."""
        spec = find_spec("axe_core_python")
        if spec is None or spec.origin is None:
            raise SkipTest("axe-core-python is not installed")
        self.driver.execute_script(Path(spec.origin).with_name("axe.min.js").read_text("utf-8"))
        found: list[str] = self.driver.execute_async_script(AXE)
        return found


class BrowserTests(SynchronousTestCase):
    """The page, in Chromium."""

    def setUp(self) -> None:
        """Start the browser."""
        self.browser = Browser(self)

    def page(self, *options: str, **more: Any) -> Service:
        """Start a service, and load its page."""
        service = Service(self, *TCP, *(options or STATUS), **more)
        self.browser.open(service)
        return service

    def test_live(self) -> None:
        """A connection that is made meanwhile appears, and disappears; nothing is reported."""
        service, browser = self.page(), self.browser
        browser.wait_for("#state", "Live")
        self.assertEqual(browser.figure("connections"), "0")
        with service.connect() as sock:
            browser.wait_for("[data-figure=connections] td", "^1$")
            sock.sendall(b"one\ntwo\n")
            browser.wait_for("[data-figure=messages_total] td", "^2$")
            browser.wait_for("[data-figure=messages_total] .rate", r"^\d+$")
            self.assertEqual(browser.text("[data-figure=connections] .rate"), "")
        browser.wait_for("[data-figure=connections] td", "^0$")
        self.assertEqual(browser.driver.get_log("browser"), [])

    def test_echo_by_keyboard(self) -> None:
        """What is typed comes back, without a mouse; where the focus is can be seen."""
        from selenium.webdriver.common.keys import Keys

        self.page()
        browser = self.browser
        active = "document.activeElement"
        browser.press(Keys.TAB)
        self.assertEqual(browser.run(f"{active}.id"), "message")
        self.assertNotEqual(browser.run(f"getComputedStyle({active}).outlineStyle"), "none")
        browser.press("你好", Keys.ENTER)
        self.assertRegex(browser.wait_for("#reply", "你好").encode(), STAMP + "你好$".encode())
        browser.press(" <b>", Keys.TAB)
        self.assertEqual(browser.run(f"{active}.textContent"), "Send")
        self.assertNotEqual(browser.run(f"getComputedStyle({active}).outlineStyle"), "none")
        browser.press(Keys.SPACE)
        browser.wait_for("#reply", "你好 <b>$")
        self.assertEqual(browser.run("location.pathname"), "/")

    def test_clock(self) -> None:
        """The offset of the browser's clock is right within its bound, in either direction."""
        for seconds in (2.345, -2.345, 0):
            self.page(environment=faketime(f"{seconds:+f}"))
            text = self.browser.wait_for("#clock", "ms")
            self.assert_right(text, 1000 * seconds)
            later = self.browser.run("performance.now()") + 3000
            self.browser.wait(partial(self.browser.run, "performance.now()"), partial(lt, later))
            self.assert_right(self.browser.text("#clock"), 1000 * seconds)

    def assert_right(self, text: str, offset: float) -> None:
        """Check what is said of the clock's offset, which is in ms: the server's less this one."""
        if match := re.fullmatch(
            r"This browser’s clock is (\S+) (m?s) (behind|ahead of) the server’s, ± (\S+) ms\.",
            text,
        ):
            value = float(match[1]) * (1 if match[2] == "ms" else 1000)
            value *= 1 if match[3] == "behind" else -1
            low, high = value - float(match[4]), value + float(match[4])
        else:
            match = re.fullmatch(
                r"No difference shown: this browser’s clock is at most (\S+) ms behind"
                r" the server’s, and at most (\S+) ms ahead of it\.",
                text,
            )
            assert match is not None, text
            low, high = -float(match[2]), float(match[1])
        self.assertTrue(low <= offset <= high, text)
        self.assertTrue(offset == 0 or low * high > 0, text)

    def test_arithmetic(self) -> None:
        """Offsets are intersected, drift apart with time, and begin anew when a clock is set."""
        self.page()
        everything = "[-Infinity, Infinity]"
        for call, expected in (
            (f"narrowed({everything}, [1, 5], 0)", [1, 5]),
            ("narrowed([1, 5], [3, 9], 0)", [3, 5]),
            ("narrowed([1, 5], [2, 3], 0)", [2, 3]),
            ("narrowed([1, 5], [0, 9], 10000)", [0, 6]),
            ("narrowed([1, 5], [7, 9], 0)", [7, 9]),
            ("narrowed([1, 5], [-9, 0.5], 0)", [-9, 0.5]),
            ("narrowed([1, 5], [900, -900], 0)", [1, 5]),
        ):
            self.assertEqual(self.browser.run(call), expected, call)

    def test_words(self) -> None:
        """An offset is rounded to its bound, and its bound up."""
        self.page()
        behind, ahead = "behind the server’s", "ahead of the server’s"
        for offsets, expected in (
            ([2344.2, 2345.8], f"2.34500 s {behind}, ± 0.80 ms"),
            ([-2345.8, -2344.2], f"2.34500 s {ahead}, ± 0.80 ms"),
            ([10.04, 12.09], f"11.1 ms {behind}, ± 1.1 ms"),
            ([100000, 100050], f"100.025 s {behind}, ± 25 ms"),
            ([1000, 3000], f"2.000 s {behind}, ± 1000 ms"),
            ([5, 5], f"5.000 ms {behind}, ± 0.000 ms"),
        ):
            said = f"This browser’s clock is {expected}."
            self.assertEqual(self.browser.run(f"inWords({offsets})"), said)
        for offsets, (later, earlier) in (
            ([-0.41, 0.602], ("0.61", "0.41")),
            ([0, 3], ("3.0", "0.0")),
            ([-30, 11], ("11", "30")),
        ):
            said = (
                f"No difference shown: this browser’s clock is at most {later} ms {behind},"
                f" and at most {earlier} ms ahead of it."
            )
            self.assertEqual(self.browser.run(f"inWords({offsets})"), said)

    def test_restart(self) -> None:
        """The page says that the service is gone, and goes on when it is back on the same port."""
        service, browser = self.page(), self.browser
        browser.wait_for("#state", "Live")
        port = status_port(service)
        self.assertEqual(service.stop(), 0)
        browser.wait_for("#state", "^Not connected")
        browser.wait_for("#clock", "does not answer")
        browser.driver.find_element("css selector", "button").click()
        browser.wait_for("#reply", "does not answer")
        again = Service(self, *TCP, "--status", f"tcp:{port}:interface=127.0.0.1")
        browser.wait_for("#state", "Live")
        browser.wait_for("#clock", "ms")
        with again.connect():
            browser.wait_for("[data-figure=connections] td", "^1$")

    def test_hung(self) -> None:
        """A service that is silent counts as gone, although its connection stays.

        So does one whose connection is lost, at once. There never are two streams.
        """
        browser = self.browser
        script = {"source": SOURCES}
        browser.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", script)
        service = self.page()
        browser.wait_for("#state", "Live")
        lost = "(sources[0].dispatchEvent(new Event('error')), byId('state').textContent)"
        self.assertIn("Not connected", browser.run(lost))
        browser.wait_for("#state", "Live")
        service.process.send_signal(signal.SIGSTOP)
        self.addCleanup(service.process.send_signal, signal.SIGCONT)
        browser.wait_for("#state", "^Not connected")
        service.process.send_signal(signal.SIGCONT)
        browser.wait_for("#state", "Live")
        self.assertGreater(browser.run("sources.length"), 1)
        self.assertEqual(browser.run("sources.filter((each) => each.readyState < 2).length"), 1)

    def test_without_scripts(self) -> None:
        """The figures are there, and the echo works, without JavaScript."""
        browser = self.browser
        browser.set("setScriptExecutionDisabled", value=True)
        service = self.page()
        self.assertRegex(browser.text("#state"), r"^As of \d\d:\d\d:\d\d UTC\. Reload")
        self.assertEqual(browser.figure("connections"), "0")
        self.assertNotIn("Per second", browser.text("body"))
        self.assertIn("requires JavaScript", browser.text("#clock"))
        with service.connect() as sock:
            sock.sendall(b"x\n")
            sock.recv(100)
            browser.driver.refresh()
            self.assertEqual(browser.figure("connections"), "1")
        field = browser.driver.find_element("css selector", "#message")
        field.send_keys("你好")
        field.submit()
        self.assertRegex(browser.wait_for("body", "你好").encode(), STAMP + "你好$".encode())

    def test_looks(self) -> None:
        """On a phone nothing is wider than the screen; dark where the system is; axe is content."""
        browser = self.browser
        self.page()
        browser.wait_for("#state", "Live")
        grounds = set()
        browser.set(
            "setDeviceMetricsOverride", width=360, height=780, deviceScaleFactor=2, mobile=True
        )
        for scheme in ("light", "dark"):
            feature = {"name": "prefers-color-scheme", "value": scheme}
            browser.set("setEmulatedMedia", features=[feature])
            for state in ("Live", "Not connected"):
                browser.run(f"state('{state}', {str(state != 'Live').lower()})")
                self.assertEqual(browser.violations(), [], scheme)
            grounds.add(browser.run("getComputedStyle(document.body).backgroundColor"))
        self.assertEqual(len(grounds), 2)
        browser.driver.execute_script(
            "for (const cell of document.querySelectorAll('tbody td'))"
            " cell.textContent = cell.className ? '123,456,789' : '123,456,789,012';"
            "for (const element of document.querySelectorAll('output, small'))"
            " element.textContent = 'x'.repeat(99);"
        )
        self.assertLessEqual(browser.run("document.documentElement.scrollWidth"), 360)


def unread(port: int, request: bytes) -> socket.socket:
    """Connect with a tiny buffer, and send a request; the response is not read."""
    sock = socket.socket()
    sock.settimeout(PATIENCE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    sock.connect(("127.0.0.1", port))
    with contextlib.suppress(OSError):  # over the limit of connections, it is closed
        sock.sendall(request)
    return sock


class FloodTests(SynchronousTestCase):
    """Clients of the page that do not read, in numbers."""

    def test_memory(self) -> None:
        """They cost bounded memory: 200 readers of events, and 200 with 1,000 requests each."""
        for request in (REQUEST % b"/events", REQUEST % b"/" * 1000):
            service = Service(self, *TCP, *STATUS)
            metrics(service)
            before = service.resident()
            for _ in range(200):
                self.addCleanup(unread(status_port(service), request).close)
            with service.connect() as sock:
                sock.sendall(b"x\n")
                self.assertRegex(sock.recv(100), STAMP + b"x\n")
            self.assertLess(service.resident() - before, 2**22)
            self.assertEqual(service.stop(), 0)


class ReaderTests(TestCase):
    """A reader of the live figures that does not read, in this process and without waiting."""

    def test_dropped(self) -> Deferred[None]:
        """It is dropped when its buffer is full, so that it costs no more than that."""
        from twisted.internet import reactor

        clock = Clock()
        factory = TimestampEchoFactory(clock=clock)
        metrics = Metrics(factory, [], list, clock)
        site = StatusSite(metrics, lambda: True, clock)
        add_page(site.resource, metrics.figures, factory, clock)
        port: Any = cast(Any, reactor).listenTCP(0, site, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        sock = unread(port.getHost().port, REQUEST % b"/events")
        self.addCleanup(sock.close)

        def events() -> None:
            if site.channels:
                clock.pump([INTERVAL] * 100)  # some 30 KiB, which the kernel takes first
            elif clock.seconds():
                turns.stop()

        turns = LoopingCall(events)
        return turns.start(0).addCallback(lambda _: self.assertRaises(OSError, drained, sock))


def drained(sock: socket.socket) -> None:
    """Read to the end.

    @raise ConnectionResetError: this is how it ends.
    """
    while sock.recv(2**16):
        pass
