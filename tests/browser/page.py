"""Swagger UI as a person uses it: opens an operation, fills in, executes, and reads what the page shows.

Nothing here reaches around the page: requests are made by it, and answers are read from it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from selenium.common.exceptions import (
    ElementClickInterceptedException,
    NoSuchElementException,
    StaleElementReferenceException,
)
from selenium.webdriver import Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.browser.preflight import BROWSERS, DRIVERS, program

T = TypeVar("T")
PATIENCE_S = 30.0
SIZE = (1280, 2400)  # an operation with its answer, whole
FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--window-size={SIZE[0]},{SIZE[1]}",
)


@contextmanager
def browser(folder: Path) -> Iterator[Chrome]:
    """A headless Chromium with a profile of its own, which asks nobody but the page's own server."""
    options = ChromeOptions()
    options.binary_location = program(BROWSERS) or ""
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    if os.geteuid() == 0:  # Chromium's sandbox refuses root
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    driver = Chrome(options, Service(program(DRIVERS), log_output=str(folder / "driver.log")))
    try:
        yield driver
    finally:
        driver.quit()


@dataclass(frozen=True)
class Answer:
    """What the page shows of an answer."""

    status: int
    text: str

    @property
    def json(self) -> Any:
        """The body, read from the page's own rendering."""
        return json.loads(self.text)


@dataclass
class SwaggerUi:
    """The page in a browser. `pictures` gets one screenshot of each step."""

    driver: Chrome
    url: str
    pictures: Path
    downloads: Path
    taken: list[str] = field(default_factory=list)

    def open(self) -> None:
        """Load the page and wait until it shows the operations."""
        self.driver.get(f"{self.url}/docs")
        self._await(lambda: self.driver.find_elements(By.CSS_SELECTOR, ".opblock-tag-section"))
        self.picture("page")

    def picture(self, name: str, *, of: WebElement | None = None) -> None:
        """Keep what the window shows, or the whole of an element."""
        self.pictures.mkdir(parents=True, exist_ok=True)
        self.taken.append(name)
        path = str(self.pictures / f"{len(self.taken):02d}-{name}.png")
        (of or self.driver).screenshot(path) if of else self.driver.save_screenshot(path)

    def authorize(self, token: str) -> None:
        """Paste a token or a key into the dialogue behind Authorize."""
        self._click(self._find(".auth-wrapper .btn.authorize"))
        field_ = self._find(".modal-ux .auth-container input")
        field_.send_keys(token)
        self.picture("authorize")
        self._click(self._find(".modal-ux .auth-btn-wrapper .authorize"))
        self._click(self._find(".modal-ux .btn-done"))

    def forget(self) -> None:
        """Log out of the page."""
        self._click(self._find(".auth-wrapper .btn.authorize"))
        self._click(self._find(".modal-ux .auth-btn-wrapper button:not(.btn-done)"))
        self._click(self._find(".modal-ux .btn-done"))

    @property
    def is_authorized(self) -> bool:
        """Whether the lock beside Authorize is closed."""
        return bool(self.driver.find_elements(By.CSS_SELECTOR, ".auth-wrapper .btn.authorize.locked"))

    def call(self, tag: str, operation: str, *, body: Any = None, name: str = "", **values: str) -> Answer:
        """Open an operation, try it out with these values, and read the answer; closes it again."""
        block = self._opened(tag, operation)
        self._try_out(block)
        for parameter, value in values.items():
            self._fill(block, parameter, value)
        if body is not None:
            self._write(self._find("textarea.body-param__text", within=block), json.dumps(body, indent=2))
        self._click(self._find(".btn.execute", within=block))
        answer = self._read(block)
        self.picture(name or operation, of=block)
        self._click(block.find_element(By.CSS_SELECTOR, ".opblock-summary-control"))
        return answer

    def download(self, tag: str, operation: str) -> Path:
        """Take the file that the last answer of an operation offers."""
        block = self._opened(tag, operation)
        self._click(self._find(".live-responses-table a[download]", within=block))
        self._click(block.find_element(By.CSS_SELECTOR, ".opblock-summary-control"))
        return self._await(lambda: next(self.downloads.glob("*.jsonl"), None))

    def complaints(self) -> list[str]:
        """What the browser itself complained of: broken policy, missing files, script errors."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] == "SEVERE" and not re.search(r"status of 4\d\d", entry["message"])
        ]

    def _opened(self, tag: str, operation: str) -> WebElement:
        selector = f"#operations-{tag}-{operation}"
        if not self.driver.find_elements(By.CSS_SELECTOR, selector):
            self._click(self._find(f"#operations-tag-{tag}"))
        block = self._find(selector)
        self._click(block.find_element(By.CSS_SELECTOR, ".opblock-summary-control"))
        self._find(".opblock-body .try-out__btn", within=block)
        return block

    def _try_out(self, block: WebElement) -> None:
        """Make the fields writable, and clear what an earlier call left."""
        for button in block.find_elements(By.CSS_SELECTOR, ".btn-clear, .try-out__btn:not(.cancel)"):
            self._click(button)

    def _fill(self, block: WebElement, parameter: str, value: str) -> None:
        row = self._find(f'tr[data-param-name="{parameter}"]', within=block)
        chosen = row.find_elements(By.CSS_SELECTOR, f'select option[value="{value}"]')
        if chosen:
            chosen[0].click()
        else:
            self._write(row.find_element(By.CSS_SELECTOR, "input"), value)

    def _write(self, area: WebElement, text: str) -> None:
        """Replace what stands there, as by pasting: key by key a plan takes minutes."""
        area.send_keys(Keys.CONTROL, "a")
        area.send_keys(Keys.DELETE)
        self.driver.execute_cdp_cmd("Input.insertText", {"text": text})

    def _read(self, block: WebElement) -> Answer:
        def shown() -> Answer | None:
            cells = block.find_elements(By.CSS_SELECTOR, ".live-responses-table tbody .response-col_status")
            if not cells or not cells[0].text[:3].isdigit() or block.find_elements(By.CLASS_NAME, "loading"):
                return None
            bodies = block.find_elements(
                By.CSS_SELECTOR, ".live-responses-table .response-col_description .highlight-code code"
            )
            text = bodies[0].get_attribute("textContent") if bodies else ""
            return Answer(int(cells[0].text[:3]), text or "")

        return self._await(shown)

    def _find(self, selector: str, *, within: WebElement | None = None) -> WebElement:
        return self._await(lambda: (within or self.driver).find_element(By.CSS_SELECTOR, selector))

    def _click(self, element: WebElement) -> None:
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        self._await(lambda: element.click() or True)

    def _await(self, look: Callable[[], T | None]) -> T:
        passing = (NoSuchElementException, StaleElementReferenceException, ElementClickInterceptedException)
        wait = WebDriverWait(self.driver, PATIENCE_S, poll_frequency=0.05, ignored_exceptions=passing)
        return wait.until(lambda _driver: look())
