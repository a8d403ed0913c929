"""The system's Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Dialog, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
WAIT_MS = 20_000
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}


@contextmanager
def chromium() -> Iterator[Browser]:
    """Not while an asynchronous test runs: Playwright occupies the thread's event loop."""
    expect.set_options(timeout=WAIT_MS)  # a busy machine is no reason to fail
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield made
        made.close()


class Tab:
    """A signed-in operator's page; what its browser refused to run or load is in `refused`."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.url = url
        self.refused: list[str] = []
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.refused.append(str(error)))
        self.dialogs: list[str] = []
        self.page.on("dialog", self._dismiss)

    def _dismiss(self, dialog: Dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def _note(self, message: Any) -> None:
        if message.type == "error" and "status of" not in message.text:
            self.refused.append(message.text)

    def sign_in(self, key: str) -> None:
        self.open("/login")
        self.page.get_by_label("Key with the scope").fill(key)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_url("**/decisions")

    def open(self, path: str) -> Page:
        self.page.goto(f"{self.url}{path}")
        return self.page
