"""The console, a guarded server behind it, and a real browser before it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from console_site import Operator, Site
from playwright.sync_api import Browser, BrowserContext

from chromium import DESKTOP, PHONE, Tab, chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


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
            place = tmp_path / secrets.token_hex(4)
            place.mkdir()
            made = Site(place, **sections)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Callable[..., Tab]]:
    """open_tab(site, "approver") -> a tab of a browser profile of its own, signed in."""
    contexts: list[BrowserContext] = []

    def make(site: Site, name: str | None = None, size: dict[str, int] = DESKTOP) -> Tab:
        context = browser.new_context(viewport=size, has_touch=size is PHONE)  # type: ignore[arg-type]
        contexts.append(context)
        tab = Tab(context, site.url)
        if name is not None:
            tab.sign_in(site.keys[name])
        return tab

    yield make
    for context in contexts:
        context.close()


@pytest.fixture
def operator(site: Site) -> Callable[..., Operator]:
    return lambda name=None: Operator(site, name)
