"""A headless Chromium for tests, driven over its debugging pipe.

Nothing but the standard library talks to the browser: messages are JSON ended by a zero byte, see
https://chromedevtools.github.io/devtools-protocol/ (flag `--remote-debugging-pipe`).
"""

import base64
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LAPTOP, PHONE = (1280, 900), (390, 844)
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --remote-debugging-pipe"
)
# The browser reads commands from file descriptor 3 and answers on 4.
LAUNCHER = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for number, pipe in enumerate(pipes, start=3):
    os.dup2(pipe, number)
os.execvp(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One tab of a headless Chromium."""

    def __init__(self, program: str, profile: Path) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", LAUNCHER, str(to_read), str(to_write)),
                *(program, *FLAGS.split(), f"--user-data-dir={profile}"),
            ],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer = b""
        self._count = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._session = None
        self.call("Browser.close")
        self._process.wait(timeout=20)
        os.close(self._read)
        os.close(self._write)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; events that arrive meanwhile are kept."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._read, 1 << 20)
            assert chunk, "the browser went away"
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\0", 1)
        return dict(json.loads(line))

    def open(self, page: Path | str, state: str = "", *, size: tuple[int, int] = LAPTOP) -> None:
        """Show a page, and wait until the viewers of a report have drawn."""
        self.events.clear()
        phone = size == PHONE
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=size[0],
            height=size[1],
            deviceScaleFactor=1,
            mobile=phone,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        address = page if isinstance(page, str) else page.as_uri()
        protocol = address.split(":")[0]
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=f"{address}{state}")
        self.wait(f"document.readyState === 'complete' && location.protocol === '{protocol}:'")
        if protocol != "file":
            return
        if self.js("document.querySelector('canvas') !== null"):
            self.wait("document.querySelector('.viewer').dataset.ready === 'yes'")
            self.settle()

    def js(self, expression: str) -> Any:
        """The value of an expression, promises awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, claim: str) -> None:
        end = time.monotonic() + 20
        while not self.js(claim):
            assert time.monotonic() < end, f"never true: {claim}"
            time.sleep(0.02)

    def settle(self) -> None:
        """Wait for two frames, so that what was asked for is drawn."""
        self.js("new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")

    def canvas(self) -> np.ndarray:
        """The first canvas as (H, W, 3) uint8."""
        self.settle()
        uri = self.js("document.querySelector('canvas').toDataURL()")
        content = base64.b64decode(uri.split(",")[1])
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))

    def centre(self, selector: str) -> tuple[float, float]:
        """The centre of an element in the window, scrolled into view."""
        x, y = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        return x, y

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.mouse("mouseMoved", *start)
        self.mouse("mousePressed", *start, button="left", buttons=1, clickCount=1)
        self.mouse("mouseMoved", *end, button="left", buttons=1)
        self.mouse("mouseReleased", *end, button="left", clickCount=1)
        self.settle()

    def press(self, key: str, code: int = 0) -> None:
        text = {"text": key} if len(key) == 1 else {}
        keys = {"key": key, "windowsVirtualKeyCode": code or ord(key[0])}
        self.call("Input.dispatchKeyEvent", type="keyDown", **keys, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **keys)
        self.settle()

    def touch(self, kind: str, *points: tuple[float, float]) -> None:
        touches = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        self.call("Input.dispatchTouchEvent", type=kind, touchPoints=touches)

    def readout(self) -> str:
        return str(self.js("document.querySelector('.readout').textContent"))

    def checked(self, control: str) -> str:
        selector = json.dumps(f"[data-control='{control}'] input:checked")
        return str(self.js(f"document.querySelector({selector}).value"))

    def complaints(self) -> list[str]:
        """Console messages, uncaught errors, blocked content and requests beyond the page."""
        self.settle()
        found = []
        for event in self.events:
            method, parameters = event.get("method"), event.get("params", {})
            if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                found.append(json.dumps(parameters))
            if method == "Network.requestWillBeSent":
                url = parameters["request"]["url"]
                if not url.startswith("data:") and parameters.get("type") != "Document":
                    found.append(url)
        return found
