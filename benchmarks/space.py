"""How long a visitor of the Space waits, and whether twenty at once each get their own answer.

    python -m tinywave.benchmarks.space [--output docs/space.json] [--screenshots docs/images]

A server of its own is started and used as visitors use it: a page in Chromium that takes an example and presses the
button, and scripted visitors who all ask at the same time, each with a seed of their own.
"""

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from ..cli.shipped import AUDIO
from ..data.storage import write_json

PROMPT = AUDIO / "librivox" / "sense_and_sensibility_01_0880.flac"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
)
START_SECONDS = 600
WAIT_MILLISECONDS = 300_000
ANSWER_SECONDS = 1.5

# Notes on the page when the button was pressed and when the stream's clock first moved, looking at every frame.
CLOCK = """() => {
    window.pressed = window.heard = null;
    document.querySelector('#continue').addEventListener('click', () => { window.pressed ??= performance.now(); });
    const look = () => {
        const players = [...document.querySelectorAll('#live audio')];
        if (players.some(player => player.currentTime > 0)) window.heard = performance.now();
        else requestAnimationFrame(look);
    };
    look();
}"""


def find_chromium() -> str:
    """Path of a Chromium. Raises `FileNotFoundError` where there is none."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise FileNotFoundError(
        f"found none of {', '.join(BROWSERS)} on the PATH; install Chromium (apt install chromium)"
    )


@contextmanager
def open_browser(*more_flags: str) -> Iterator:
    """A headless Chromium, as Playwright's browser object."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=[*CHROMIUM_FLAGS, *more_flags])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def serve() -> Iterator[str]:
    """`tinywave demo` in a process of its own -> its address, as soon as it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "tinywave.cli.main", "demo", "--port", str(port)])
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(address, server)
        yield address
    finally:
        server.terminate()
        server.wait()


def _wait_for(address: str, server: subprocess.Popen) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with exit code {server.returncode}")
        try:
            urlopen(f"{address}/config", timeout=10).close()
            return
        except (URLError, TimeoutError):
            time.sleep(0.2)
    raise TimeoutError(f"the server did not answer in {START_SECONDS} s")


def measure_first_sound(address: str, num_runs: int) -> list[float]:
    """Seconds from pressing the button until the player's clock moves, in a fresh page each time."""
    seconds = []
    with open_browser() as browser:
        for _ in range(num_runs):
            page = browser.new_page()
            page.goto(address)
            _take_example(page)
            page.evaluate(CLOCK)
            page.click("#continue")
            page.wait_for_function("() => window.heard !== null", timeout=WAIT_MILLISECONDS)
            seconds.append(page.evaluate("() => (window.heard - window.pressed) / 1000"))
            page.close()
    return seconds


def _take_example(page) -> None:
    page.get_by_role("button", name="A story, her voice").first.click(timeout=WAIT_MILLISECONDS)
    page.locator(".recording").first.get_by_label("Play", exact=True).wait_for(timeout=WAIT_MILLISECONDS)


def measure_users(address: str, num_users: int) -> dict:
    """Many visitors at once, then each seed again alone: an answer that differs belonged to somebody else.

    Returns {"users", "failures", "wrong_answers", "seconds"}: visitors without any answer, with another's, and until
    the last one had his.
    """
    start = time.perf_counter()
    with ThreadPoolExecutor(num_users) as pool:
        together = list(pool.map(lambda seed: _ask(address, seed), range(num_users)))
    seconds = time.perf_counter() - start
    alone = [_ask(address, seed) for seed in range(num_users)]
    return {
        "users": num_users,
        "failures": sum(isinstance(answer, Exception) for answer in together),
        "wrong_answers": sum(
            isinstance(first, str) and first != second for first, second in zip(together, alone, strict=True)
        ),
        "seconds": seconds,
    }


def _ask(address: str, seed: int) -> str | Exception:
    """The tokens of an answer, or what came instead."""
    from gradio_client import Client, handle_file

    try:
        client = Client(address, verbose=False)
        recording = handle_file(str(PROMPT))
        answer = client.predict(
            recording=recording, seconds=ANSWER_SECONDS, seed=seed, temperature=1.0, api_name="/continue_speech"
        )
        return answer[-1]
    except Exception as error:
        return error


def take_screenshots(address: str, folder: Path) -> None:
    """Pictures of the page for the documentation: an answer, a conversation, a comparison, a plot and a phone."""
    folder.mkdir(parents=True, exist_ok=True)
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1120, "height": 900})
        page.goto(address)
        _take_example(page)
        page.click("#continue")
        page.wait_for_selector("#picture img", timeout=WAIT_MILLISECONDS)
        _write_picture(page, folder / "space_continuation.png")
        page.set_viewport_size({"width": 375, "height": 812})
        _write_picture(page, folder / "space_phone.png")
        page.set_viewport_size({"width": 1120, "height": 900})
        page.get_by_role("tab", name="Text and speech").click()
        for modality, text in (("text", "One day, Emma went to the farm."), ("speech", "There she saw a duck.")):
            page.get_by_label(modality, exact=True).check()
            box = page.locator("#message textarea")
            box.fill(text)
            box.press("Enter")
            page.locator("#chat .user").get_by_text(text).wait_for(timeout=WAIT_MILLISECONDS)
            page.wait_for_function("() => !document.querySelector('#chat_status').innerText.trim()")
        _write_picture(page, folder / "space_conversation.png")
        page.get_by_role("tab", name="Evaluate").click()
        page.click("#evaluate")
        page.get_by_text("4 suites done.").wait_for(timeout=WAIT_MILLISECONDS)
        _write_picture(page, folder / "space_evaluation.png")


def _write_picture(page, path: Path) -> None:
    page.wait_for_timeout(1500)  # players draw their waves, colours fade in
    page.screenshot(path=path, full_page=True)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, and write JSON and pictures where asked."""
    parser = argparse.ArgumentParser(description="Measure the Space as its visitors meet it.")
    parser.add_argument("--num-runs", type=int, default=5, help="presses of the button (default: 5)")
    parser.add_argument("--num-users", type=int, default=20, help="visitors at once (default: 20)")
    parser.add_argument("--output", type=Path, help="write the result as JSON to this file")
    parser.add_argument("--screenshots", type=Path, help="write pictures of the page to this folder")
    arguments = parser.parse_args(argv)
    load = os.getloadavg()[0]
    with serve() as address:
        runs = measure_first_sound(address, arguments.num_runs)
        users = measure_users(address, arguments.num_users)
        if arguments.screenshots:
            take_screenshots(address, arguments.screenshots)
    result = {
        "first_audio_seconds": statistics.median(runs),
        "first_audio_runs": runs,
        **users,
        "cpus": os.cpu_count(),
        "load_before": load,
    }
    print(f"first sound after {result['first_audio_seconds']:.2f} s, median of {len(runs)}; load before {load:.1f}")
    print(f"{users['users']} users: {users['failures']} failures, {users['wrong_answers']} wrong answers")
    if arguments.output:
        write_json(result, arguments.output)


if __name__ == "__main__":
    main()
