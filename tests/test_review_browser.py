"""The review page in a real browser: its keys, filters, threshold and ways to save."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.run_folder import CLASS_NAMES, write_run_folder
from tutelage.data.pseudo.verdicts import Verdicts, read_verdicts, write_verdicts
from tutelage.reviews.serve import ReviewServer
from tutelage.types import InputError
from tutelage.workflows import reviewing
from tutelage.workflows.reviewing import open_reviewed, review

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
)
WAIT = 10.0  # seconds


class Page:
    """The page in the browser."""

    def __init__(self, driver: webdriver.Chrome, downloads: Path) -> None:
        self.driver = driver
        self.downloads = downloads

    def open(self, address: str) -> None:
        self.driver.get(address)
        assert not [entry for entry in self.driver.get_log("browser") if "favicon" not in entry["message"]]

    def press(self, *keys: str) -> None:
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def get(self, place: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, place)

    def all(self, place: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, place)

    def text(self, place: str) -> str:
        return self.get(place).text

    def script(self, text: str, *arguments: Any) -> Any:
        return self.driver.execute_script(text, *arguments)

    def slide(self, place: str, value: float) -> None:
        self.script("arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))",
                    self.get(place), value)  # fmt: skip

    def verdicts(self) -> dict[str, str]:
        """Signs by number of the label, in this image."""
        return {row.get_attribute("data-label"): row.find_element(By.CSS_SELECTOR, ".sign").get_attribute("aria-label")
                for row in self.all("#labels li")}  # fmt: skip

    def focused(self) -> str:
        return self.get("#labels li.focused").get_attribute("data-label")

    def await_file(self) -> Path:
        place = self.downloads / "verdicts.json"
        until(lambda: place.is_file() and place.stat().st_size > 0)
        return place.rename(self.downloads / f"taken-{time.monotonic_ns()}.json")


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One browser for all tests of this file."""
    for program in (CHROMIUM, DRIVER):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is absent")
    folder = tmp_path_factory.mktemp("browser")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={folder / 'user'}"):
        options.add_argument(flag)
    (folder / "downloads").mkdir()
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield Page(driver, folder / "downloads")
    driver.quit()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    masks = ("background", *CLASS_NAMES)
    for name, (task, names) in {"boxes": ("detection", CLASS_NAMES), "masks": ("segmentation", masks)}.items():
        write_run_folder(folder / name, task=task, class_names=names, num_test=2, num_pool=9)
    return {name: folder / name for name in ("boxes", "masks")}


@pytest.fixture(scope="module")
def written(runs: dict[str, Path]) -> str:
    """Address of the page of boxes."""
    return Path(review(runs["boxes"])["page"]).as_uri()


@pytest.fixture
def page(browser: Page, written: str) -> Page:
    """The page of boxes, fresh: nothing is kept of other tests."""
    browser.open(written)
    browser.script("localStorage.clear()")
    browser.open(written)
    return browser


def content(page: Page) -> Any:
    return json.loads(page.script("return document.getElementById('data').textContent"))


def test_keys_judge_labels_and_undo_takes_back(page: Page) -> None:
    labels = len(page.all("#labels li"))
    assert labels >= 4 and page.focused() == "0" and page.text("#position").startswith("1 of 6")
    page.press("a", "r")
    assert page.verdicts() | {"0": "accept", "1": "reject"} == page.verdicts() and page.focused() == "2"
    page.press(Keys.ARROW_DOWN, "i", "k", "k")
    assert page.verdicts()["3"] == "ignore" and page.verdicts()["2"] == "no verdict"
    page.press("u")
    assert page.verdicts()["3"] == "no verdict" and page.focused() == "3"
    page.press("k", "k", "r")
    assert page.verdicts()["1"] == "no verdict", "given twice is taken back"
    assert page.get("#picture g.accept").get_attribute("data-label") == "0"
    page.press("u", "u", "u", "u")
    assert set(page.verdicts().values()) == {"no verdict"} and not page.get("#undo").is_enabled()
    assert page.text("#message") == "Nothing to undo."


def test_images_are_walked_through_and_finished(page: Page) -> None:
    images = content(page)["images"]
    page.press(Keys.ARROW_RIGHT)
    assert page.text("#position") == "2 of 6" and images[1]["path"] in page.text("#path")
    page.press(Keys.ARROW_LEFT, "r", Keys.ENTER)
    assert page.text("#position") == "2 of 6" and "(1 of 6 done)" in page.text("#path")
    page.press(Keys.ARROW_LEFT)
    kept = {str(at) for at, label in enumerate(images[0]["labels"]) if label["score"] >= 0.5}
    said = page.verdicts()
    assert said["0"] == "reject" and {at for at, one in said.items() if one == "accept"} == kept - {"0"} != set()
    page.press("u")
    assert "(0 of 6 done)" in page.text("#path") and "accept" not in page.verdicts().values()
    page.press("?")
    assert "Enter" in page.text("dialog[open]")
    page.press("a", Keys.ESCAPE)
    assert not page.all("dialog[open]") and "accept" not in page.verdicts().values()


def test_filters_show_less_and_hide_nothing_from_enter(page: Page) -> None:
    data = content(page)
    page.all("#classes button")[1].click()
    shown = {row.text.split("\n")[0] for row in page.all("#labels li")}
    with_square = [
        image
        for image in data["images"]
        if any(label["class"] == 1 and label["score"] >= 0.4 for label in image["labels"])
    ]
    assert shown == {"square"} and 0 < len(with_square) <= 6
    assert page.text("#position").endswith(f"of {len(with_square)}")
    page.press("c")
    page.slide("#from", 0.6)
    assert min(float(row.text.split("\n")[1]) for row in page.all("#labels li")) >= 0.595
    page.press("c")
    page.all("#classes button")[0].click()
    others = [label for label in data["images"][0]["labels"] if label["class"] != 0 and label["score"] >= 0.5]
    page.press(Keys.ENTER)
    assert ("not shown" in page.text("#message")) == bool(others)


def test_the_threshold_counts_while_it_moves(page: Page, runs: dict[str, Path]) -> None:
    store = open_reviewed(runs["boxes"]).store

    def counts() -> list[list[int]]:
        return [[int(cell.text.replace("\u202f", "")) for cell in row.find_elements(By.TAG_NAME, "td")[1:]]
                for row in page.all("#classes tr")]  # fmt: skip

    _, boxes = next(iter(store.parts()))
    for place, threshold in ((None, 0.5), (30, 0.3), (81, 0.81)):
        if place is not None:
            page.slide("#threshold", place)
        kept = boxes["score"] >= np.float32(threshold)
        expected = [[int((kept & (boxes["label"] == k)).sum()),
                     len(np.unique(boxes["image_id"][kept & (boxes["label"] == k)]))] for k in range(4)]  # fmt: skip
        assert counts() == expected and np.sum(expected) > 0
        below = sum("below" in (row.get_attribute("class") or "") for row in page.all("#labels li"))
        scores = [label["score"] for label in content(page)["images"][0]["labels"]]
        least = min(0.5, threshold) - 0.1  # the run's threshold, or the lower one that is tried
        assert below == sum(least <= score < threshold for score in scores)
    assert page.text("#option") == "pseudo.score_threshold=0.81"
    page.all("#classes button")[1].click()
    page.slide("#threshold", 20)
    assert '"square":0.2' in page.text("#option") and '"disk":0.81' in page.text("#option")


def test_downloaded_verdicts_are_what_the_page_showed(page: Page, runs: dict[str, Path]) -> None:
    image = content(page)["images"][0]
    page.press("r", Keys.ENTER)
    page.get("#save").click()
    verdicts = read_verdicts(page.await_file())
    [said] = verdicts.images
    assert said.path == image["path"] and said.reviewed and said.size == (192, 256)
    by_score = {label["score"]: label for label in image["labels"]}
    for label in said.labels:
        drawn = by_score[label.score]
        assert label.name == CLASS_NAMES[drawn["class"]] and list(label.xyxy or ()) == drawn["xyxy"]
        assert label.round == 1 and label.verdict == ("reject" if drawn is image["labels"][0] else "accept")
    assert len(said.labels) == max(sum(label["score"] >= 0.5 for label in image["labels"]), 1)


def test_verdicts_outlive_the_page_and_can_be_loaded(page: Page, written: str, tmp_path: Path) -> None:
    page.press("a", "i")
    before = page.verdicts()
    page.open(written)
    assert page.verdicts() == before and "ignore" in before.values(), "kept in the browser"
    data = content(page)
    label = {"class": "disk", "xyxy": [1.0, 2.0, 33.0, 44.0], "verdict": "human"}
    second = {"path": data["images"][1]["path"], "size": [192, 256], "reviewed": True, "labels": [label]}
    absent = {"path": "elsewhere.jpg", "size": [9, 9], "reviewed": False, "labels": []}
    given = Verdicts.model_validate({"annotation": "boxes", "class_names": CLASS_NAMES, "images": [second, absent]})
    write_verdicts(tmp_path / "mine.json", given)
    page.get("#file").send_keys(str(tmp_path / "mine.json"))
    until(lambda: "(1 of 6 done)" in page.text("#path"))
    assert page.verdicts() == before, "what was said of other images stays"
    page.press(Keys.ARROW_RIGHT)
    assert len(page.all("#picture .said")) == 1 and "1 more verdicts" in page.text("#caption")
    page.get("#save").click()
    images = {image.path: image for image in read_verdicts(page.await_file()).images}
    assert images[second["path"]] == given.images[0] and images["elsewhere.jpg"] == given.images[1]
    assert len(images) == 3
    (tmp_path / "bad.json").write_text("{}")
    page.get("#file").send_keys(str(tmp_path / "bad.json"))
    until(lambda: "cannot be taken in" in page.text("#message"))


def test_names_of_files_and_classes_stay_text(browser: Page, tmp_path: Path) -> None:
    evil = "</script><img src=x onerror='document.title=1'>"
    run = write_run_folder(tmp_path / "run", class_names=(evil, "b&amp;"), num_test=2, num_pool=5)
    review(run)
    browser.open((run / "review" / "review.html").as_uri())
    assert evil in browser.text("#classes") and "b&amp;" in browser.text("#classes")
    assert not browser.all("img") and browser.driver.title == "Review: run"


def test_regions_of_masks_are_judged(browser: Page, runs: dict[str, Path], tmp_path: Path) -> None:
    review(runs["masks"], out=tmp_path)
    browser.open((tmp_path / "review.html").as_uri())
    regions = content(browser)["images"][0]["labels"]
    assert len(browser.all("#picture .region")) == len(regions) > 2
    browser.press("a", "r", "z")
    window = "return document.getElementById('picture').getAttribute('viewBox')"
    zoomed = [float(one) for one in browser.script(window).split()]
    x1, y1, x2, y2 = regions[2]["xyxy"]
    assert zoomed != [0, 0, 256, 192] and zoomed[0] <= x1 and zoomed[0] + zoomed[2] >= x2
    assert zoomed[1] <= y1 and zoomed[1] + zoomed[3] >= y2
    browser.press("z")
    assert browser.script(window) == "0 0 256 192"
    browser.get("#save").click()
    [said] = read_verdicts(browser.await_file()).images
    assert [label.verdict for label in said.labels] == ["accept", "reject"]
    for label, region in zip(said.labels, regions, strict=False):
        assert label.region is not None and label.region.counts == region["rle"]["counts"]
    assert "%" in browser.text("#classes")


def test_the_served_page_saves_by_itself(
    browser: Page, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[ReviewServer] = []

    class Noted(ReviewServer):
        def serve_forever(self, poll_interval: float = 0.02) -> None:
            started.append(self)
            super().serve_forever(0.02)

    monkeypatch.setattr(reviewing, "ReviewServer", Noted)
    thread = threading.Thread(target=review, args=[runs["boxes"]], kwargs={"serve": True, "out": tmp_path})
    thread.start()
    until(lambda: started)
    try:
        browser.open(started[0].url)
        browser.press("a", "r", Keys.ENTER)
        until(lambda: browser.text("#status") == "saved")
        [said] = read_verdicts(tmp_path / "verdicts.json").images
        assert said.reviewed and [label.verdict for label in said.labels[:2]] == ["accept", "reject"]
        browser.press("u", "u")
        until(lambda: "reject" not in (tmp_path / "verdicts.json").read_text())
        browser.open(started[0].url)
        assert list(browser.verdicts().values()).count("accept") == 1

        imported = read_verdicts(tmp_path / "verdicts.json").model_copy(update={"images": ()})
        write_verdicts(tmp_path / "verdicts.json", imported)  # by another page, or review --import
        browser.press("i")
        until(lambda: "was changed elsewhere" in browser.text("#status"))
        assert read_verdicts(tmp_path / "verdicts.json") == imported

        def refuse(verdicts: Verdicts, seen: str) -> str:
            raise InputError("the disk is full")

        started[0].save = refuse
        browser.press("i")
        until(lambda: browser.text("#status") == "not saved: the disk is full")
    finally:
        started[0].shutdown()
        thread.join()
