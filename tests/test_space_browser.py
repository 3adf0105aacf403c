"""The Space in a real Chromium: heard, recorded, stopped, reloaded, on a phone.

A forward hook counts the passes of the model, and can hold the generation at one of them until the test has seen what
has to happen before it goes on: what is proved is an order of events, on however slow a machine.
"""

import contextlib
import shutil
import threading
from pathlib import Path

import pytest
import soundfile
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tinywave.benchmarks.space import BROWSERS, open_browser
from tinywave.spaces.interface import build_interface, launch
from tinywave.spaces.studio import Studio

LIBRIVOX = Path(__file__).resolve().parents[1] / "assets" / "audio" / "librivox"
WAIT = 120_000
TABS = ["Speech continuation", "Text and speech", "Teacher beside student", "Evaluate", "Codec"]

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, BROWSERS)), reason=f"no Chromium on the PATH (looked for {', '.join(BROWSERS)})"
)


class Passes:
    """Counts the forward passes of a model; `hold_at(n)` stops before the n-th new one until `release`."""

    def __init__(self, model):
        self.count, self.prompts, self._stop_at = 0, 0, None
        self.is_held, self._go = threading.Event(), threading.Event()
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def hold_at(self, number: int) -> None:
        self.is_held.clear()
        self._go.clear()
        self._stop_at = self.count + number

    def release(self) -> None:
        self._stop_at = None
        self._go.set()

    def _count(self, module, arguments, named):
        self.count += 1
        self.prompts += named["input_ids"].shape[1] > 1
        if self.count == self._stop_at:
            self.is_held.set()
            self._go.wait(WAIT / 1000)


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # away from what a quickstart may have left
        yield Studio()


@pytest.fixture(scope="module")
def passes(studio):
    return Passes(studio.pipeline("plain").model)


@pytest.fixture(scope="module")
def address(studio):
    blocks = build_interface(studio)
    yield launch(blocks, wait=False)
    blocks.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    recording = tmp_path_factory.mktemp("microphone") / "microphone.wav"
    soundfile.write(recording, *soundfile.read(LIBRIVOX / "sense_and_sensibility_01_0870.flac"), subtype="PCM_16")
    with open_browser(
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={recording}",
    ) as browser:
        yield browser


@pytest.fixture
def page(browser, address):
    page = browser.new_page(viewport={"width": 1120, "height": 900})
    page.set_default_timeout(WAIT)
    page.foreign = []
    page.on("request", lambda request: page.foreign.append(request.url) if is_foreign(request.url, address) else None)
    page.goto(address)
    page.wait_for_selector("#continue")
    yield page
    page.close()


def is_foreign(url: str, address: str) -> bool:
    return not url.startswith((address, "data:", "blob:"))


def choose_example(page):
    page.get_by_role("button", name="Sense and Sensibility").first.click()
    page.locator(".recording").first.get_by_label("Play", exact=True).wait_for()


def set_length(page, seconds: float):
    """Open the settings and set the length of the answer."""
    page.get_by_role("button", name="Settings").first.click()
    box = page.get_by_label("number input for Length").first
    slider = page.get_by_label("range slider for Length").first
    # The slider moves when the page has taken the number over. A page that is being drawn anew may forget it:
    # then another number is typed first, so that this one is news again.
    for attempt in range(12):
        if attempt:
            box.fill("2")
        box.fill(f"{seconds:g}")
        box.blur()
        with contextlib.suppress(AssertionError):
            return expect(slider).to_have_value(f"{seconds:g}", timeout=WAIT / 12)
    raise AssertionError(f"the slider stands at {slider.input_value()}, not at {seconds:g}")


def test_the_page_loads_and_asks_no_other_server(page):
    assert page.title() == "TinyWave"
    assert "language model continues it" in page.locator("#introduction").inner_text()
    assert [tab.inner_text() for tab in page.get_by_role("tab").all()] == TABS
    assert page.foreign == []


def test_an_empty_clip_is_refused_in_words(page):
    page.click("#continue")
    page.get_by_text("There is no recording yet").wait_for()


def test_what_the_microphone_hears_is_continued(page):
    recorder = page.locator(".recording").first
    recorder.get_by_role("button", name="Record", exact=True).click()
    recorder.get_by_text("0:02").wait_for()
    recorder.locator(".stop-button").click()
    recorder.get_by_label("Play", exact=True).wait_for()
    set_length(page, 1)
    page.click("#continue")
    page.wait_for_selector("#picture img")
    assert "s of speech from 18 units" in page.locator("#status").inner_text()


def test_playback_starts_before_the_generation_ends(page, passes):
    choose_example(page)
    start = passes.count
    passes.hold_at(80)
    page.click("#continue")
    try:
        page.wait_for_function("() => [...document.querySelectorAll('#live audio')].some(p => p.currentTime > 0)")
        assert passes.count - start <= 80  # of 108
        assert page.locator("#picture img").count() == 0
    finally:
        passes.release()
    page.wait_for_selector("#picture img")
    assert "s of speech from 108 units" in page.locator("#status").inner_text()


def test_two_clicks_are_one_request(page, passes, studio, monkeypatch):
    # Requests are told from each other by the prompts that are read, so none may be known already.
    monkeypatch.setattr(studio.pipeline("plain"), "prompt_cache", None)
    choose_example(page)
    set_length(page, 1)
    before = passes.prompts
    page.dblclick("#continue")
    page.wait_for_selector("#picture img")
    page.get_by_text("s of speech from").wait_for()
    assert passes.prompts == before + 1


def test_stop_ends_the_generation(page, passes):
    choose_example(page)
    set_length(page, 20)
    start = passes.count
    passes.hold_at(5)
    page.click("#continue")
    assert passes.is_held.wait(WAIT / 1000)
    page.click("#stop")
    page.get_by_text("Stopped.").wait_for()
    passes.release()
    finish_another(page)
    # It ends with the piece that it is in: 20 seconds would take 360 passes.
    assert passes.count - start < 200


def test_a_reload_ends_the_generation_and_starts_afresh(page, passes, address):
    choose_example(page)
    set_length(page, 20)
    start = passes.count
    passes.hold_at(5)
    page.click("#continue")
    assert passes.is_held.wait(WAIT / 1000)
    page.reload()
    page.wait_for_selector("#continue")
    passes.release()
    assert page.locator("#status").inner_text().strip() == "Press Continue and listen."
    finish_another(page)
    assert passes.count - start < 200


def finish_another(page):
    """A later request is served, so nothing holds the models any more."""
    page.get_by_role("tab", name="Text and speech").click()
    say(page, "One day, Emma went to the farm.")


def say(page, text: str):
    """Send a text and wait for the answer to it."""
    answers = page.locator("#chat .bot").count()
    box = page.locator("#message textarea")
    box.fill(text)
    box.press("Enter")
    page.wait_for_function(f"() => document.querySelectorAll('#chat .bot').length > {answers}")


def test_a_conversation_of_text_and_speech(page):
    page.get_by_role("tab", name="Text and speech").click()
    page.get_by_label("text", exact=True).check()
    say(page, "One day, Emma went to the farm.")
    assert "Emma went to the farm" in page.locator("#chat .user").first.inner_text()
    assert len(page.locator("#chat .bot").first.inner_text()) > 20
    page.get_by_label("speech", exact=True).check()
    say(page, "There he saw a duck.")
    page.wait_for_selector("#chat .bot audio, #chat .bot [data-testid^=waveform]")
    assert page.locator("#chat").get_by_label("Download").is_visible()
    assert not page.locator("#chat").get_by_label("Share").is_visible()  # nothing leaves this server
    page.locator("#chat").get_by_label("Clear").click()
    page.wait_for_function("() => document.querySelectorAll('#chat .user').length === 0")
    page.get_by_label("text", exact=True).check()
    say(page, "Behind the barn, she found a lamb.")
    page.get_by_role("button", name="Tokens").click()
    page.wait_for_function("() => document.querySelector('#chat_tokens textarea')?.value.includes('Behind the barn')")
    # The conversation that was thrown away is not in what the model reads.
    assert "Emma" not in page.locator("#chat_tokens textarea").input_value().split("lamb.")[0]


def test_a_phone_scrolls_in_one_direction_only(page):
    page.set_viewport_size({"width": 375, "height": 812})
    for number, name in enumerate(TABS):
        if number:
            page.locator(".overflow-menu > button").click()
            page.locator(".overflow-dropdown").get_by_text(name).click()
        page.wait_for_function("() => document.scrollingElement.scrollWidth <= window.innerWidth")
        assert page.evaluate("() => document.scrollingElement.scrollWidth") <= 375


def serious_findings(page) -> list[str]:
    """What axe-core finds on the page that keeps people from using it, each with the first element concerned."""
    found = Axe().run(page).response["violations"]
    return [
        f"{finding['id']}: {finding['nodes'][0]['html'][:120]}"
        for finding in found
        if finding["impact"] in ("serious", "critical")
    ]


def open_tab(page, name: str) -> None:
    """Choose a tab, on a phone perhaps from the menu of those for which there is no room."""
    tab = page.get_by_role("tab", name=name)
    if not tab.is_visible():
        page.locator(".overflow-menu button").first.click()
        tab = page.locator(".overflow-dropdown").get_by_text(name, exact=True)
    tab.click()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1120, 900), (390, 844)], ids=["screen", "phone"])
def test_every_tab_is_accessible_before_and_after_an_answer(browser, address, theme, size):
    page = browser.new_page(viewport=dict(zip(("width", "height"), size, strict=True)))
    page.set_default_timeout(WAIT)
    page.goto(f"{address}?__theme={theme}")
    page.wait_for_selector("#continue")
    for answered in (False, True):
        if answered:
            open_tab(page, TABS[0])
            choose_example(page)
            page.locator("#continue").click()
            expect(page.locator("#status")).to_contain_text("made in", timeout=WAIT)
        for tab in TABS if not answered else TABS[:1]:
            open_tab(page, tab)
            for settings in page.get_by_role("button", name="Settings").all():
                if settings.is_visible() and settings.get_attribute("aria-expanded") != "true":
                    settings.click()
            page.wait_for_timeout(300)  # the end of the transitions, in which colours are mixed
            assert serious_findings(page) == [], (tab, theme, size, answered)
    page.close()


def test_the_main_path_needs_no_mouse(page):
    """Every control that the keyboard reaches on the way to an answer shows that it has the focus."""
    choose_example(page)
    page.locator("#continue").focus()
    outline = page.locator("#continue").evaluate(
        "node => getComputedStyle(node).outlineStyle + getComputedStyle(node).boxShadow"
    )
    assert outline not in ("nonenone",)
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("made in", timeout=WAIT)
