"""Debian's Chromium without a window, driven by its own driver; its files in one folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def missing() -> str:
    """Why no browser can be had here, or nothing."""
    if shutil.which("chromium") and shutil.which("chromedriver"):
        return ""
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        return "chromium and chromedriver are not installed, and cannot be without root and apt-get"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "chromium", "chromium-driver"]):
        done = subprocess.run(
            ["apt-get", *words], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            return f"apt-get {' '.join(words)} failed: {done.stderr.strip().splitlines()[-1:]}"
    return "" if shutil.which("chromedriver") else "chromium-driver brought no chromedriver"


@contextmanager
def browser(folder: Path) -> Iterator[Any]:
    """A browser that keeps nothing and knows no proxy."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--no-proxy-server",
        "--no-first-run",
        f"--user-data-dir={folder}",
    ):
        options.add_argument(word)
    options.binary_location = shutil.which("chromium") or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = Service(shutil.which("chromedriver"), env={**os.environ, "NO_PROXY": "127.0.0.1"})
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()
