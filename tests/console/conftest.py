"""The console, a guarded server behind it, and a real browser before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from console_site import Operator, Site
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield made
        made.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for all tests of a module that leave it as it was."""
    made = Site(tmp_path_factory.mktemp("site"))
    yield made
    made.close()


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    with ExitStack() as stack:

        def make(**sections: Any) -> Site:
            made = Site(tmp_path, **sections)
            stack.callback(made.close)
            return made

        yield make


class Tab:
    """A signed-in operator's page; what its browser refused to run or load is in `refused`."""

    def __init__(self, context: BrowserContext, site: Site) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(20_000)
        self.site = site
        self.refused: list[str] = []
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.refused.append(str(error)))
        self.dialogs: list[str] = []
        self.page.on(
            "dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss())
        )

    def _dismiss(self, dialog: Dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def _note(self, message: Any) -> None:
        if message.type == "error" and "status of" not in message.text:
            self.refused.append(message.text)

    def sign_in(self, name: str) -> None:
        self.page.goto(f"{self.site.url}/login")
        self.page.get_by_label("Key with the scope").fill(self.site.keys[name])
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_url("**/decisions")

    def open(self, path: str) -> Page:
        self.page.goto(f"{self.site.url}{path}")
        return self.page


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Callable[..., Tab]]:
    """open_tab(site, "approver") -> a tab of a browser profile of its own, signed in."""
    contexts: list[BrowserContext] = []

    def make(site: Site, name: str | None = None, size: dict[str, int] = DESKTOP) -> Tab:
        context = browser.new_context(viewport=size, has_touch=size is PHONE)  # type: ignore[arg-type]
        contexts.append(context)
        tab = Tab(context, site)
        if name is not None:
            tab.sign_in(name)
        return tab

    yield make
    for context in contexts:
        context.close()


@pytest.fixture
def operator(site: Site) -> Callable[..., Operator]:
    return lambda name=None: Operator(site, name)
