"""A headless Chromium to open pages in, as a reader would; tests skip where there is none."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def _find(*names: str) -> str:
    for name in names:
        if found := shutil.which(name):
            return found
    pytest.skip(f"needs {names[0]}, which is not installed (Debian: apt-get install chromium chromium-driver)")


@contextmanager
def chromium() -> Iterator["Browser"]:
    """Start Chromium without a window."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="driving a browser needs selenium")
    binary = _find("chromium", "chromium-browser", "google-chrome")
    driver = _find("chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    try:
        page = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    except Exception as error:  # an installation that does not run is as good as none
        pytest.skip(f"Chromium does not start: {str(error).splitlines()[0]}")
    try:
        page.set_page_load_timeout(60)
        yield Browser(page)
    finally:
        page.quit()


class Browser:
    """What the tests ask of a page."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False, fragment: str = "") -> None:
        """Open a file in a window of some width, on light or dark paper."""
        self.page.get("about:blank")  # another fragment of the same file would not load it again
        self.page.get_log("browser")
        self.page.get_log("performance")
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.page.get(path.as_uri() + fragment)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page and return its value."""
        return self.page.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        """The first element."""
        return self.page.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        """Every element."""
        return self.page.find_elements("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        """Texts of the elements that are shown."""
        return [element.text for element in self.all(selector) if element.is_displayed()]

    def press(self, *keys: str) -> None:
        """Press keys wherever the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.page).send_keys(*keys).perform()

    def complaints(self) -> list[str]:
        """What the console says: errors, refusals of the content security policy."""
        return [entry["message"] for entry in self.page.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses asked for since the page was opened, but for the page itself and what stands in it."""
        import json

        messages = [json.loads(entry["message"])["message"] for entry in self.page.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("file://", "data:", "about:"))]
