"""Drives a headless Chromium over the DevTools protocol, through a pipe: no server, no WebSocket, no driver."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BINARY = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip
TIMEOUT = 60
COMPLAINTS = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Network.loadingFailed")

BADLY_PLACED = """
[...document.querySelectorAll('svg')].flatMap(chart => {
  const frame = chart.getBoundingClientRect();
  const texts = [...chart.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
  const cut = texts.filter(([, box]) => box.left < frame.left || box.right > frame.right || box.bottom > frame.bottom);
  const covered = texts.filter(([, box], at) => texts.slice(0, at).some(([, other]) =>
    box.left < other.right && other.left < box.right && box.top + 2 < other.bottom && other.top + 2 < box.bottom));
  return [...cut, ...covered].map(([text]) => text);
})
"""


class Page:
    """One open page.

    Attributes:
        complaints: everything the browser had to say against the page: console messages, violations of the content
            security policy, failed loads, exceptions.
        requests: the addresses it asked for.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._buffer, self._number, self._session = b"", 0, ""
        self.complaints: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self._events: list[str] = []

    def attach(self) -> None:
        """Open an empty page and listen to it."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def open(self, address: str) -> None:
        """Load a page and wait until everything on it has loaded."""
        self._events.clear()
        self.call("Page.navigate", url=address)
        self._wait_until_loaded()

    def follow(self, action: str) -> None:
        """Run JavaScript that leads to another page, and wait until that has loaded."""
        self._events.clear()
        self.evaluate(action)
        self._wait_until_loaded()

    def _wait_until_loaded(self) -> None:
        while "Page.loadEventFired" not in self._events:
            self._read()

    def evaluate(self, expression: str) -> Any:
        """Return the JSON value of a JavaScript expression, evaluated by the debugger and not by the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def badly_placed(self) -> list[str]:
        """Return the texts of charts that are cut, or cover others."""
        found: list[str] = self.evaluate(BADLY_PLACED)
        return found

    def show(self, width: int, scheme: str = "light", media: str = "screen") -> None:
        """Set the width in CSS pixels, the colour scheme and the medium."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.call(
            "Emulation.setEmulatedMedia",
            media=media,
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )

    def picture(self, path: Path) -> None:
        """Save the whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._reading], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"Chromium has said nothing for {TIMEOUT} s.")
            chunk = os.read(self._reading, 1 << 20)
            if not chunk:
                raise EOFError("Chromium has closed the pipe.")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        method = message.get("method", "")
        self._events.append(method)
        if method in COMPLAINTS:
            self.complaints.append(message)
        if method == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        return message


@contextmanager
def browser() -> Iterator[Page]:
    """Start Chromium with an empty profile, give a page, and stop it again."""
    assert BINARY is not None
    to_browser, from_browser = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [BINARY, *FLAGS, f"--user-data-dir={profile}"]
        # the protocol's pipe is file descriptors 3 and 4 of the browser
        shell = ["bash", "-c", f'exec "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}', "chromium", *command]
        process = subprocess.Popen(
            shell, pass_fds=(to_browser[0], from_browser[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        try:
            page = Page(from_browser[0], to_browser[1])
            page.attach()
            yield page
        finally:
            process.terminate()
            process.wait(TIMEOUT)
            os.close(from_browser[0])
            os.close(to_browser[1])
