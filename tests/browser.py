"""A tab of a real browser, driven over its debugging protocol: real mouse and keys, any width, light or dark."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from tornado.websocket import WebSocketClientConnection, websocket_connect

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
PATIENCE = 60
"""Seconds to wait for anything."""


class Tab:
    """One page in headless Chromium; to be closed."""

    def __init__(self, profile: Path, width: int, dark: bool = False) -> None:
        command = [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank",
        ]  # fmt: skip
        home = {**os.environ, "HOME": str(profile)}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=home, **quiet)
        self.loop, self.sent, self.events = asyncio.new_event_loop(), 0, list[dict[str, Any]]()
        self.socket = self.loop.run_until_complete(self._connect(profile / "DevToolsActivePort"))
        for part in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{part}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def _connect(self, port: Path) -> WebSocketClientConnection:
        end = time.monotonic() + PATIENCE
        while not port.exists() or len(port.read_text().split()) < 2:
            assert time.monotonic() < end, "Chromium did not start"
            await asyncio.sleep(0.05)
        with urllib.request.urlopen(f"http://127.0.0.1:{port.read_text().split()[0]}/json") as answer:
            pages = [tab for tab in json.load(answer) if tab["type"] == "page"]
        return await websocket_connect(pages[0]["webSocketDebuggerUrl"], max_message_size=1 << 28)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol; events that come in between are kept."""
        self.sent += 1
        message = json.dumps({"id": self.sent, "method": method, "params": parameters})
        found = self.loop.run_until_complete(asyncio.wait_for(self._answer(message), PATIENCE))
        assert "error" not in found, found["error"]
        return found["result"]

    async def _answer(self, message: str) -> dict[str, Any]:
        await self.socket.write_message(message)
        while True:
            answer = await self.socket.read_message()
            assert answer is not None, "Chromium ended"
            found = json.loads(answer)
            if found.get("id") == self.sent:
                return found
            self.events.append(found)

    def run(self, script: str) -> Any:
        """The value of an expression in the page, awaited."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def open(self, page: Path, ready: str = "document.readyState === 'complete'") -> None:
        """Open a file and wait until an expression is true."""
        self.call("Page.navigate", url=page.as_uri())
        self.wait(f"location.protocol === 'file:' && {ready}")

    def wait(self, condition: str) -> None:
        """Wait until an expression is true; while a page loads, it may make no sense."""
        end = time.monotonic() + PATIENCE
        while not self._holds(condition):
            assert time.monotonic() < end, f"never true: {condition}; {self.complaints()}"
            time.sleep(0.05)

    def _holds(self, condition: str) -> bool:
        try:
            return bool(self.run(condition))
        except AssertionError:
            return False

    def frame(self) -> None:
        """Let the page draw."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))")

    def move(self, x: float, y: float) -> None:
        """Move the mouse."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.frame()

    def click(self, x: float, y: float) -> None:
        """Click with the mouse."""
        self.move(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.frame()

    def press(self, key: str) -> None:
        """Press a key where the focus is."""
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)
        self.frame()

    def complaints(self) -> list[str]:
        """All that stands in the console, and requests of anything beyond the page."""
        found = []
        for event in self.events:
            request = event.get("params", {}).get("request", {}).get("url", "")
            asks = event["method"] == "Network.requestWillBeSent" and not request.startswith(
                ("file:", "data:", "blob:")
            )
            if asks or event["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
                found.append(json.dumps(event["params"])[:2000])
        return found

    def close(self) -> None:
        """End the browser."""
        self.socket.close()
        self.process.terminate()
        self.process.wait(PATIENCE)
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()
