"""The Space as programs meet it: a real server on this computer, asked through gradio_client."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from gradio_client import Client, handle_file

from tinywave.cli.loading import load_for_training, load_language_model
from tinywave.cli.shipped import TEACHER
from tinywave.processing_tinywave import TinyWaveProcessor
from tinywave.spaces.interface import build_interface, launch
from tinywave.spaces.middleware import UploadLimit
from tinywave.spaces.recordings import load_recording
from tinywave.spaces.studio import Sampling, Studio
from tinywave.training.layer_map import LayerMap
from tinywave.training.student_init import student_from_teacher

ROOT = Path(__file__).resolve().parents[1]
CLIP = ROOT / "assets" / "audio" / "librivox" / "sense_and_sensibility_01_0880.flac"
NUM_USERS = 20


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """A Space of one small model of units alone, which is its own student."""
    teacher, _ = load_for_training(TEACHER, ["unit"])
    model = student_from_teacher(teacher, LayerMap.every_third_ending_last(teacher.config.num_hidden_layers, 3))
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    TinyWaveProcessor.from_config(model.config, load_language_model(TEACHER)[1].tokenizer).save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))  # away from what a quickstart may have left
        yield Studio(str(folder), student=str(folder))


@pytest.fixture(scope="module")
def address(studio):
    blocks = build_interface(studio)
    yield launch(blocks, wait=False).rstrip("/")
    blocks.close()


@pytest.fixture(scope="module")
def client(address):
    return Client(address, verbose=False)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """The first second of a human reading: twenty of them are answered in little time."""
    samples, rate = soundfile.read(CLIP)
    path = tmp_path_factory.mktemp("clip") / "clip.wav"
    soundfile.write(path, samples[4000 : 4000 + rate], rate)
    return path


def test_the_named_endpoints_are_there(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/continue_speech", "/interleaved", "/compare", "/evaluate", "/encode"}


def test_continue_speech(client, studio, recording):
    live, whole, picture, facts, tokens = client.predict(
        recording=handle_file(str(recording)), seconds=1, seed=5, api_name="/continue_speech"
    )
    *_, expected = studio.continue_speech(load_recording(recording).waveform, "plain", Sampling(seed=5, seconds=1))
    samples, rate = soundfile.read(whole)
    assert rate == 24_000
    np.testing.assert_allclose(samples[-len(expected.waveform) :], expected.waveform, atol=1e-4)
    assert tokens == expected.tokens
    assert Path(live).name == "playlist.m3u8" and Path(picture).stat().st_size > 1000
    assert facts.startswith(f"{len(expected.waveform) / 24_000:.1f} s of speech from 18 units")


def test_interleaved_remembers_the_conversation(client, recording):
    def say(text, files, modality):
        message = {"text": text, "files": [handle_file(str(path)) for path in files]}
        return client.predict(message=message, output_modality=modality, seconds=1, api_name="/interleaved")

    messages, tokens, *_ = say("One day, Emma went to the farm.", [], "text")
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert tokens.startswith("<s>[Text]One day, Emma went to the farm.")
    messages, more_tokens, *_ = say("", [recording], "speech")
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert more_tokens.startswith(tokens.removesuffix("</s>") + "[Speech]")
    assert soundfile.info(messages[-1]["content"][0]["file"]).samplerate == 24_000


def test_compare(client, recording):
    teacher, student, without, table, _ = client.predict(
        recording=handle_file(str(recording)), seconds=1, api_name="/compare"
    )
    assert without is None
    # Here the student is the teacher's own folder: the same seed gives both the same answer.
    np.testing.assert_array_equal(soundfile.read(teacher)[0], soundfile.read(student)[0])
    assert [row[0] for row in table["data"]] == ["Teacher", "Student, distilled"]


def test_encode(client, studio, recording):
    spoken, picture, record, _ = client.predict(recording=handle_file(str(recording)), api_name="/encode")
    streams, expected, waveform = studio.encode(load_recording(recording).waveform)
    assert record == expected
    np.testing.assert_allclose(soundfile.read(spoken)[0], waveform, atol=1e-4)


def test_an_error_comes_in_words(client, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(16_000), 16_000)
    with pytest.raises(Exception, match="silent"):
        client.predict(recording=handle_file(str(tmp_path / "silence.wav")), api_name="/continue_speech")
    with pytest.raises(Exception, match="There is no recording yet"):
        client.predict(recording=None, api_name="/continue_speech")


def test_twenty_users_each_get_their_own_answer(address, studio, recording):
    def ask(seed):
        user = Client(address, verbose=False)
        answer = user.predict(
            recording=handle_file(str(recording)), seconds=1, seed=seed, temperature=1, api_name="/continue_speech"
        )
        return answer[-1]

    with ThreadPoolExecutor(NUM_USERS) as pool:
        answers = list(pool.map(ask, range(NUM_USERS)))
    waveform = load_recording(recording).waveform
    expected = []
    for seed in range(NUM_USERS):
        *_, answer = studio.continue_speech(waveform, "plain", Sampling(seed=seed, seconds=1, temperature=1))
        expected.append(answer.tokens)
    assert answers == expected
    assert len(set(answers)) == NUM_USERS


def test_a_cancelled_request_stops_the_model_and_the_next_is_served(client, studio, recording):
    passes, is_held, go = [], threading.Event(), threading.Event()

    def hold(*_):
        passes.append(1)
        if len(passes) == 5:
            is_held.set()
            go.wait(60)

    handle = studio.pipeline("plain").model.register_forward_pre_hook(hold)
    try:
        job = client.submit(recording=handle_file(str(recording)), seconds=20, api_name="/continue_speech")
        assert is_held.wait(60)
        # The server answers when the generator is closed, which waits for the pass that is held here.
        with pytest.raises(httpx.ReadTimeout):
            job.cancel()
        go.set()
        assert client.predict(recording=handle_file(str(recording)), api_name="/encode")[2]["units"]
        assert len(passes) < 200  # of 360
    finally:
        go.set()
        handle.remove()


@pytest.mark.parametrize("path", ["/etc/passwd", ROOT / "spaces" / "app.py", ROOT / "assets/teacher/config.json"])
def test_files_of_the_computer_are_not_readable(address, path):
    assert Path(path).is_file()
    assert httpx.get(f"{address}/gradio_api/file={path}").status_code == 403


def call(address: str, endpoint: str, data: list) -> str:
    """A request as any program can send it -> the events that come back."""
    event = httpx.post(f"{address}/gradio_api/call/{endpoint}", json={"data": data}).json()["event_id"]
    return httpx.get(f"{address}/gradio_api/call/{endpoint}/{event}", timeout=120).text


def test_a_file_of_the_computer_is_not_taken_for_an_upload(address):
    with CLIP.open("rb") as file:
        (uploaded,) = httpx.post(f"{address}/gradio_api/upload", files={"files": file}).json()
    for path, event in ((uploaded, "event: complete"), (str(CLIP), "event: error")):
        recording = {"path": path, "meta": {"_type": "gradio.FileData"}}
        assert event in call(address, "encode", [recording, "plain"])


def test_nobody_passes_the_queue(address):
    answer = httpx.post(f"{address}/gradio_api/run/encode", json={"data": [None, "plain"]})
    assert answer.status_code == 404


def test_a_large_file_is_refused(client, tmp_path):
    path = tmp_path / "large.wav"
    soundfile.write(path, np.zeros((7_000_000, 2)), 48_000)  # 28 MB
    with pytest.raises(Exception, match="size|413|Maximum"):
        client.predict(recording=handle_file(str(path)), api_name="/encode")


def ask(address, name, data):
    """Call an endpoint as any program may: (status of the call, kind of its last event, text of the error)."""
    response = httpx.post(f"{address}/gradio_api/call/{name}", json={"data": data}, timeout=60)
    if response.status_code != 200:
        return response.status_code, "", response.text
    lines = httpx.get(f"{address}/gradio_api/call/{name}/{response.json()['event_id']}", timeout=60).text.splitlines()
    event = [line for line in lines if line.startswith("event: ")][-1].removeprefix("event: ")
    content = [line for line in lines if line.startswith("data: ")][-1].removeprefix("data: ")
    return 200, event, content


def uploaded(address, path):
    (name,) = httpx.post(f"{address}/gradio_api/upload", files={"files": path.read_bytes()}).json()
    return {"path": name, "meta": {"_type": "gradio.FileData"}}


WRONG = {
    0: [None, "x", 3, [], {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, {"path": "x"}],
    1: [None, 3, "nope", []],
    2: [None, "nope", 4],
    3: ["two", None, -1, 1e9, [1], "NaN"],
    4: ["hot", None, -1, 99],
    5: ["x", 0, None],
    6: ["x", -1, None, 2**40],
    7: ["yes", None, 3],
}


def test_wrong_inputs_are_answered_with_a_text_and_harm_nobody(address, recording):
    good = [uploaded(address, recording), "plain", "as recorded", 1, 0.7, 0.9, 0, True]
    wrong = [[*good[:place], value, *good[place + 1 :]] for place, values in WRONG.items() for value in values]
    for data in (*wrong, [], good[:3]):
        status, event, content = ask(address, "continue_speech", data)
        assert (status, event) == (200, "error") and '"error": null' not in content and "Traceback" not in content, (
            data
        )
    assert ask(address, "continue_speech", good)[:2] == (200, "complete")


@pytest.mark.parametrize("name", ["lambda", "lambda_1", "unnamed", "nothing"])
@pytest.mark.parametrize("kind", ["call", "run"])
def test_the_page_s_own_handlers_are_no_endpoints(address, kind, name):
    response = httpx.post(f"{address}/gradio_api/{kind}/{name}", json={"data": []})
    assert response.status_code == 404 and f"there is no endpoint '{name}'" in response.text


def test_uploads_have_a_limit_and_a_refused_one_harms_no_other(address, recording):
    many = [("files", (f"{number}.wav", bytes(20 * 2**20))) for number in range(4)]
    response = httpx.post(f"{address}/gradio_api/upload", files=many, timeout=60)
    assert response.status_code == 413 and "larger than 64 MB together" in response.text
    response = httpx.post(f"{address}/gradio_api/upload", files={"files": bytes(26 * 2**20)}, timeout=60)
    assert response.status_code == 413
    good = [uploaded(address, recording), "plain"]
    assert ask(address, "encode", good)[:2] == (200, "complete")


def test_what_is_kept_has_a_limit(tmp_path):
    (tmp_path / "kept").write_bytes(bytes(1000))
    answered = []

    async def send(message):
        answered.append(message)

    async def app(scope, receive, send):
        answered.append("passed on")

    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": [(b"content-length", b"100")]}
    asyncio.run(UploadLimit(app, tmp_path, max_kept_bytes=1050)(scope, None, send))
    assert answered[0]["status"] == 413 and b"try again in a while" in answered[1]["body"]
    answered.clear()
    asyncio.run(UploadLimit(app, tmp_path, max_kept_bytes=2000)(scope, None, send))
    assert answered == ["passed on"]
