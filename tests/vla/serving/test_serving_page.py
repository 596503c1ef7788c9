"""The page, in a real browser."""

import shutil
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from fake_model import FakeModel
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright
from running import Running, running, wait_until

from backbone.vlm import VLM
from envs.tabletop.render import render
from envs.tabletop.scene import EASY, sample_scene
from vla.assets import PALIGEMMA_TABLETOP as MODEL
from vla.serving.engine import Engine

pytestmark = pytest.mark.slow

KEY = "correct-horse-battery"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("google-chrome")
    assert path, "the page is checked in a real browser: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def tabletop():
    vlm = VLM.from_pretrained(MODEL, dtype="float32")
    with running(Engine(vlm), name="paligemma_tabletop") as server:
        yield server


@pytest.fixture
def page(browser) -> Iterator[Page]:
    """A page whose scripts must not fail."""
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    page = context.new_page()
    page.set_default_timeout(15_000)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console",
        lambda m: faults.append(m.text) if "Content Security Policy" in m.text else None,
    )
    yield page
    context.close()
    assert not faults


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "scene.png"
    Image.fromarray(render(sample_scene(np.random.default_rng(5), EASY), "top", 72)).save(file)
    return file


def start(page: Page, server: Running, picture=None) -> None:
    page.goto(server.url)
    expect(page.locator("#model code")).to_be_visible()
    if picture is not None:
        page.locator("#file").set_input_files(picture)
        expect(page.locator("#ask")).to_be_enabled()


def colours(page: Page) -> int:
    """How many pixels of the canvas have the first box's colour."""
    return page.evaluate(
        """() => {
          const canvas = document.getElementById("canvas");
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          let count = 0;
          for (let i = 0; i < data.length; i += 4)
            count += data[i] === 0xe4 && data[i + 1] === 0x57 && data[i + 2] === 0x2e;
          return count;
        }"""
    )


def test_a_picture_is_chosen_and_described(page, tabletop, scene):
    start(page, tabletop)
    expect(page.locator("#ask")).to_be_disabled()
    page.locator("#file").set_input_files(scene)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answer")).to_contain_text("a red plate and a yellow plate")
    expect(page.locator("#time")).to_contain_text("ms in all")
    expect(page.locator("#time")).to_contain_text("caption en")


def test_a_question_is_asked_with_the_keyboard_alone(page, tabletop, scene):
    start(page, tabletop, scene)
    page.locator("input[value=caption]").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    page.keyboard.type("how many objects are there?")
    page.keyboard.press("Enter")
    expect(page.locator("#answer")).to_have_text("3")


def test_things_are_found_listed_and_drawn(page, tabletop, scene):
    start(page, tabletop, scene)
    page.get_by_text("Detect", exact=True).click()
    page.get_by_label("Things to find").fill("yellow plate, purple square")
    before = colours(page)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#things li")).to_have_count(2)
    expect(page.locator("#things li").first).to_contain_text("yellow plate")
    expect(page.locator("#canvas")).to_have_attribute("data-boxes", "2")
    expect(page.get_by_role("img", name="yellow plate, purple square marked")).to_be_visible()
    assert before == 0
    assert colours(page) > 500


def test_masks_are_drawn_over_their_half_of_the_box(page, browser, scene):
    codes = "".join(f"<seg{i:03d}>" for i in range(16))
    with running(FakeModel()) as server:
        start(page, server, scene)
        page.get_by_text("Raw prompt", exact=True).click()
        page.get_by_label("Prompt", exact=True).fill(
            f"<loc0000><loc0000><loc1023><loc1023>{codes} all"
        )
        before = pixel(page, 0.25, 0.45), pixel(page, 0.75, 0.45)
        page.get_by_role("button", name="Ask").click()
        expect(page.locator("#things li")).to_contain_text("mask")
        after = pixel(page, 0.25, 0.45), pixel(page, 0.75, 0.45)
    assert before[0] != after[0]
    assert before[1] == after[1]


def pixel(page: Page, x: float, y: float) -> list[int]:
    return page.evaluate(
        """([x, y]) => {
          const canvas = document.getElementById("canvas");
          const at = [x * canvas.width, y * canvas.height].map(Math.round);
          return [...canvas.getContext("2d").getImageData(...at, 1, 1).data];
        }""",
        [x, y],
    )


def test_what_is_no_picture_is_said(page, tabletop, tmp_path):
    file = tmp_path / "notes.png"
    file.write_text("hello")
    start(page, tabletop)
    page.locator("#file").set_input_files(file)
    expect(page.get_by_role("alert")).to_contain_text("can’t be opened as a picture")


def test_a_refusal_of_the_server_is_shown(page, tabletop, tmp_path, scene):
    start(page, tabletop, scene)
    page.get_by_text("Question", exact=True).click()
    page.get_by_role("textbox", name="Question").fill("why " * 600)
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("alert")).to_contain_text("at most 2048 are read")
    page.get_by_role("textbox", name="Question").fill("")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("alert")).to_contain_text("is empty")


def test_other_formats_and_huge_pictures_are_sent_as_what_the_server_reads(page, tmp_path):
    files = {"small.bmp": (20, 10), "huge.png": (5000, 4000)}
    for name, size in files.items():
        Image.new("RGB", size, (200, 30, 30)).save(tmp_path / name)
    with running(FakeModel()) as server:
        for name in files:
            start(page, server, tmp_path / name)
            page.get_by_role("button", name="Ask").click()
            expect(page.locator("#answer")).to_contain_text("[caption en](")
    expect(page.locator("#about")).to_contain_text("5000 × 4000 (sent smaller)")


def test_a_locked_server_asks_for_its_key(page, scene):
    with running(FakeModel(), key=KEY) as server:
        page.goto(server.url)
        expect(page.get_by_role("alert")).to_contain_text("asks for its key")
        page.locator("#file").set_input_files(scene)
        page.get_by_label("Key of this server").fill("wrong")
        page.get_by_role("button", name="Ask").click()
        expect(page.get_by_role("alert")).to_contain_text("not the server’s key")
        page.get_by_label("Key of this server").fill(KEY)
        page.get_by_role("button", name="Ask").click()
        expect(page.locator("#answer")).to_contain_text("[caption en]")


def test_stop_ends_the_work(page, scene):
    gate = threading.Event()
    model = FakeModel(gate)
    with running(model) as server:
        start(page, server, scene)
        page.get_by_role("button", name="Ask").click()
        wait_until(lambda: bool(model.batches))  # what never arrived can't be cancelled
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("button", name="Stop")).to_be_hidden()
        expect(page.get_by_role("button", name="Ask")).to_be_enabled()
        wait_until(lambda: server.metric("vla_cancelled_total") == 1)
        gate.set()
        assert server.chat("next").status_code == 200
        expect(page.get_by_role("alert")).to_be_hidden()


def test_nothing_leaves_the_edge_of_a_phone(page, tabletop, scene):
    page.set_viewport_size({"width": 360, "height": 700})
    start(page, tabletop, scene)
    page.get_by_text("Detect", exact=True).click()
    page.get_by_label("Things to find").fill("yellow plate")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#things li")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_every_field_has_a_label(page, tabletop):
    start(page, tabletop)
    unlabelled = page.evaluate(
        """() => [...document.querySelectorAll("input, textarea, button")]
             .filter((e) => !(e.labels?.length || e.textContent.trim())).map((e) => e.outerHTML)"""
    )
    assert unlabelled == []


def test_the_page_may_run_and_load_nothing_from_elsewhere(tabletop):
    response = tabletop.client.get("/")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "http" not in response.text.replace("http-equiv", "").replace("https://", "http")
