"""A headless Chromium for the tests of pages, and what is asked of every page: no dialog, no error, no request to anywhere else."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# No sandbox: tests run as root in containers. The others keep Chromium's own services from asking the network for anything.
_OPTIONS = """
    --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync
"""


def chromium() -> str | None:
    """Where a Chromium is, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


def missing() -> str | None:
    """Why there can be no browser here, or `None`."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed"
    return None if chromium() else "no Chromium on the PATH"


class Watch:
    """What a page did that it should not have done."""

    def __init__(self, page: Any, address: str) -> None:
        self.dialogs: list[str] = []
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.on("dialog", self._dialog)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text) if message.type in ("error", "warning") else None)
        page.on("request", lambda request: None if request.url.startswith(address) else self.requests.append(request.url))

    def _dialog(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    @property
    def complaints(self) -> list[str]:
        return [*self.dialogs, *self.errors, *self.requests]


@contextmanager
def opened(address: str, **options: Any) -> Iterator[tuple[Any, Watch]]:
    """A page of a fresh browser at an address, and the watch over it; what it asks for under that address is its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=_OPTIONS.split())
        try:
            page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
            page.set_default_timeout(120_000)  # how long a busy machine may take: nothing waits longer than it must
            watch = Watch(page, address)
            page.goto(address)
            yield page, watch
        finally:
            browser.close()
