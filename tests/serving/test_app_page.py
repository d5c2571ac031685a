"""The built-in page in a real browser: by keyboard, on a phone, with nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import served_models as serving
from browsing import browser, missing
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = pytest.mark.network
PHONE, DESKTOP = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    absent = missing()
    if absent:
        pytest.skip(absent)
    with browser(tmp_path_factory.mktemp("browser")) as driver:
        yield driver


def opened(driver: Any, url: str, size: tuple[int, int] = DESKTOP) -> Any:
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE},
    )
    driver.get_log("browser")  # what an earlier page complained of
    driver.get(url)
    until(driver, lambda: driver.find_elements(By.ID, "input"))
    return driver.find_element(By.ID, "input")


def until(driver: Any, holds: Callable[[], Any]) -> Any:
    return WebDriverWait(driver, 30, 0.05).until(lambda _: holds())


def measured(driver: Any, count: int = 1) -> list[str]:
    """What the page says of each answer, once there are `count`."""
    found = By.CSS_SELECTOR, ".turn.model .measure"
    until(driver, lambda: len(driver.find_elements(*found)) >= count)
    return [node.text for node in driver.find_elements(*found)]


def complaints(driver: Any) -> list[str]:
    """Errors in the browser's log: scripts, missing files, breaches of the content policy."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_a_conversation_by_keyboard(
    chromium: Any, chat_folder: Path, serve: Callable[..., Any], size: tuple[int, int]
) -> None:
    with serve(chat_folder) as running:
        box = opened(chromium, running.url, size)
        assert chromium.switch_to.active_element == box
        for count in (1, 2):
            two_lines = ("hello", Keys.SHIFT, Keys.ENTER, Keys.NULL, "again", Keys.ENTER)
            chromium.find_element(By.ID, "input").send_keys(*two_lines)
            assert "tokens/s" in measured(chromium, count)[-1]
        said = chromium.find_elements(By.CSS_SELECTOR, ".turn.own .text")
        assert [node.text for node in said] == ["hello\nagain"] * 2
        assert chromium.find_element(By.CSS_SELECTOR, ".turn.model .text").text
        width = chromium.execute_script("return document.documentElement.scrollWidth")
        assert width <= size[0], "the page is wider than the screen"
        assert not complaints(chromium)
        assert chromium.switch_to.active_element.get_attribute("id") == "input"
        with running.client() as client:
            counted = client.get("/metrics").text
        assert 'route="/v1/chat/completions",status="200"} 2.0' in counted


def test_escape_stops_an_answer_and_frees_its_slot(
    chromium: Any, chat_folder: Path, serve: Callable[..., Any]
) -> None:
    with serve(chat_folder, context=100_000) as running:
        box = opened(chromium, running.url)
        chromium.execute_script("document.getElementById('max_tokens').value = 480")
        box.send_keys("hello", Keys.ENTER)
        until(chromium, lambda: chromium.find_element(By.CSS_SELECTOR, ".turn.model .text").text)
        chromium.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
        assert measured(chromium) == ["Stopped."]
        running.until(lambda: not running.served.engine_thread.active)
        assert chromium.find_element(By.ID, "send").is_enabled()


def test_a_refusal_is_shown_and_the_text_kept(
    chromium: Any, chat_folder: Path, serve: Callable[..., Any]
) -> None:
    with serve(chat_folder, max_prompt_tokens=20) as running:
        box = opened(chromium, running.url)
        box.send_keys("much too long a text", Keys.ENTER)
        alert = chromium.find_element(By.ID, "error")
        until(chromium, alert.is_displayed)
        assert "where 20 are the most" in alert.text and alert.get_attribute("role") == "alert"
        assert box.get_attribute("value") == "much too long a text"


def test_classes_are_shown_with_their_shares(
    chromium: Any, tmp_path: Path, serve: Callable[..., Any]
) -> None:
    with serve(serving.classifier(tmp_path / "m")) as running:
        opened(chromium, running.url).send_keys("open", Keys.ENTER)
        assert "tokens read" in measured(chromium)[0]
        rows = chromium.find_elements(By.CSS_SELECTOR, ".turn tbody th")
        assert {row.text for row in rows} == {"bad", "good"}
        assert not complaints(chromium)


def test_a_translation_is_written_as_it_comes(
    chromium: Any, tmp_path: Path, serve: Callable[..., Any]
) -> None:
    with serve(serving.translator(tmp_path / "m")) as running:
        opened(chromium, running.url, PHONE).send_keys("open", Keys.ENTER)
        assert "tokens/s" in measured(chromium)[0]
        assert not complaints(chromium)


def test_every_control_has_a_name_and_enough_contrast(
    chromium: Any, chat_folder: Path, serve: Callable[..., Any]
) -> None:
    with serve(chat_folder) as running:
        opened(chromium, running.url).send_keys("hello", Keys.ENTER)
        measured(chromium)
        for scheme in ("light", "dark"):
            chromium.execute_cdp_cmd(
                "Emulation.setEmulatedMedia",
                {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
            )
            ratios = chromium.execute_script((Path(__file__).parent / "contrast.js").read_text())
            assert ratios and min(ratios.values()) >= 4.5, (scheme, ratios)
        unnamed = [
            node.get_attribute("outerHTML")
            for node in chromium.find_elements(By.CSS_SELECTOR, "textarea, input, button")
            if node.is_displayed() and not node.accessible_name
        ]
        assert not unnamed


def test_only_the_key_opens_the_page(chromium: Any, chat_folder: Path, serve: Callable[..., Any]) -> None:
    key = "a-key-of-at-least-sixteen-characters"
    with serve(chat_folder, key=key) as running:
        signed = running.url.replace("//", f"//anyone:{key}@")
        chromium.get(signed)
        chromium.get(running.url)
        opened(chromium, running.url).send_keys("hello", Keys.ENTER)
        assert "tokens/s" in measured(chromium)[0]
