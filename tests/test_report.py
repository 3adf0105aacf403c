"""The HTML report and the results table, made from a full report with real recordings."""

import base64
import copy
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

from tinywave.eval.prosody import StyledContinuation, measure_prosody
from tinywave.eval.report import write_report
from tinywave.eval.report_figures import Curve, curves_to_svg, waveform_to_decibels
from tinywave.eval.results_table import (
    END_MARKER,
    START_MARKER,
    prosody_to_rows,
    report_to_markdown,
    report_to_rows,
    write_between_markers,
)

MODELS = ("teacher", "student", "no_distillation")


def tone(frequency, seconds, sampling_rate=24_000):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * sampling_rate)) / sampling_rate)


@pytest.fixture
def folder(tmp_path):
    samples = tmp_path / "samples"
    samples.mkdir()
    for index, name in enumerate(("prompt", *MODELS)):
        soundfile.write(samples / f"{name}.wav", tone(400 * (index + 1), 0.5 + 0.25 * index), 24_000)
    return tmp_path


@pytest.fixture
def report():
    def scores(teacher, student, baseline):
        return {
            model: {"accuracy": accuracy, "n": 240, "ci95": [accuracy - 0.06, accuracy + 0.05]}
            for model, accuracy in zip(MODELS, (teacher, student, baseline), strict=True)
        }

    log = [
        {"step": step, "loss": 9 / step, "cross_entropy_loss": 3 / step, "logits_loss": 1 / step} for step in (1, 2, 4)
    ]
    return {
        "teacher": {"parameters": 5_242_560},
        "student": {"parameters": 1_721_088},
        "suites": {"lexical": scores(0.80, 0.78, 0.7), "story": scores(0.70, 0.68, 0.6)},
        "perplexity": {"teacher": 2.0, "student": 2.1, "no_distillation": 2.4},
        "comparisons": {
            "student-no_distillation": {
                "perplexity_difference": {"difference": -0.3, "ci95": [-0.34, -0.26], "p_value": 0.0002}
            }
        },
        "retention": {"raw_mean": 0.9733, "above_chance_mean": 0.92, "raw_mean_ci95": [0.94, 1.0]},
        "resynthesis": {
            "held_out": {
                "original": {"value": 0.01, "ci95": [0.0, 0.03], "n": 5, "num_words": 100},
                "resynthesis": {"value": 0.08, "ci95": [0.04, 0.12], "n": 5, "num_words": 100},
            }
        },
        "seconds": {"encode": 20.0, "distill": 250.0},
        "curves": {"student": log, "no_distillation": [{"step": 1, "loss": 3.0}, {"step": 4, "loss": 0.9}]},
        "continuations": [
            {
                "title": "A story",
                "text": "Tom & Ann <walked>.",
                "prompt": "samples/prompt.wav",
                "transcripts": {"student": "they talked"},
                **{model: f"samples/{model}.wav" for model in MODELS},
            }
        ],
        "speed": {"distillation_step_ratio": 1.5},
        "environment": {"torch": "2.13.0"},
        "configuration": {"distillation": {"max_steps": 600}},
    }


class Page(HTMLParser):
    """Collects elements, addresses and text; raises on tags that do not close in order."""

    VOID = {"meta", "img", "br", "link", "input"}

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.text, self.tags = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses.extend(value for name, value in attributes if name in ("src", "href"))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read_page(path):
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page, " ".join(" ".join(page.text).replace("\xa0", " ").split())


def test_the_report_is_one_file_that_needs_nothing_else(report, folder):
    page, _ = read_page(write_report(report, folder))
    assert len(page.addresses) == 8 + sum(address.startswith("#") for address in page.addresses)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert page.tags.count("audio") == 4
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["report.html"]


def test_the_players_hold_the_recordings(report, folder, tmp_path):
    page, _ = read_page(write_report(report, folder))
    recordings = [address for address in page.addresses if address.startswith("data:audio/flac;base64,")]
    decoded = tmp_path / "decoded.flac"
    for index, address in enumerate(recordings):
        decoded.write_bytes(base64.b64decode(address.partition(",")[2]))
        waveform, sampling_rate = soundfile.read(decoded)
        expected = tone(400 * (index + 1), 0.5 + 0.25 * index)
        assert sampling_rate == 24_000
        np.testing.assert_allclose(waveform, expected, atol=2e-4)


def test_the_report_shows_every_number_and_escapes_text(report, folder):
    path = write_report(report, folder)
    _, text = read_page(path)
    for part in (
        "33 % of the teacher's parameters, 97 % of its accuracy",
        "78.0 % [72.0, 83.0]",
        "72.0 to 83.0",
        "240 pairs",
        "2.100",
        "closes 75 % of the gap",
        "-0.300, 95 % interval -0.340 to -0.260",
        "Held out (n = 5)",
        "1.0 % [0.0, 3.0]",
        "8.0 % [4.0, 12.0]",
        "97.3 % [94.0, 100.0]",
        "4 min 30 s",
        "they talked",
        "distillation.max steps 600",
        "nats per token",
        "Tom & Ann <walked>.",
    ):
        assert part in text, part
    assert "<walked>" not in path.read_text(encoding="utf-8")


def test_optional_parts_may_be_absent(report, folder):
    required = {key: report[key] for key in ("teacher", "student", "suites", "perplexity", "retention")}
    page, text = read_page(write_report(required, folder))
    assert "audio" not in page.tags
    assert "svg" not in page.tags
    assert "All results" in text


def test_a_report_without_a_required_part_is_refused(report, folder):
    incomplete = copy.deepcopy(report)
    del incomplete["retention"]
    with pytest.raises(ValueError, match="has no retention"):
        write_report(incomplete, folder)
    del report["suites"]["story"]["no_distillation"]
    with pytest.raises(ValueError, match="no scores of no_distillation"):
        write_report(report, folder)


def test_a_recording_that_is_not_audio_is_named(report, folder):
    (folder / "samples" / "student.wav").write_bytes(b"not audio")
    with pytest.raises(ValueError, match="student.wav"):
        write_report(report, folder)
    assert not (folder / "report.html").exists()


def test_curves_take_the_colours_of_the_page_and_skip_what_is_not_a_number():
    svg = curves_to_svg([Curve("student", [1, 2], [0.5, 0.25])], "nats", 'Loss "a" < b')
    assert "var(--student)" in svg
    assert "var(--muted)" in svg
    assert 'aria-label="Loss &quot;a&quot; &lt; b"' in svg
    assert not re.search(r"#0[0-9]0[0-9]0[0-9]\b", svg)


def test_one_chart_for_each_loss_that_was_logged(report, folder):
    page, text = read_page(write_report(report, folder))
    assert page.tags.count("figure") == page.tags.count("svg") == 2
    assert "Logits: divergence from the teacher" in text
    assert "Attention maps: divergence" not in text


def test_a_log_with_gaps_and_nan_is_drawn(report, folder):
    report["curves"]["student"] = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": float("nan")},
        {"step": 3, "eval_loss": 1.0},
        {"train_runtime": 5.0},
    ]
    page, _ = read_page(write_report(report, folder))
    assert "svg" in page.tags


@pytest.mark.parametrize("sampling_rate", [16_000, 24_000, 44_100])
def test_spectrogram_peaks_at_the_tone(sampling_rate):
    decibels = waveform_to_decibels(tone(2000, 0.5, sampling_rate), sampling_rate)
    middle = decibels[:, decibels.shape[1] // 2]
    frequency_per_bin = sampling_rate / round(0.032 * sampling_rate)
    assert abs(middle.argmax() * frequency_per_bin - 2000) <= frequency_per_bin
    assert middle.max() > -1
    assert abs((decibels.shape[0] - 1) * frequency_per_bin - 8000) <= frequency_per_bin


@pytest.mark.parametrize("samples", [0, 1, 100])
def test_spectrogram_of_silence_and_of_almost_nothing(samples):
    decibels = waveform_to_decibels(np.zeros(samples), 16_000)
    assert decibels.shape[1] >= 1
    assert (decibels == -70).all()


def test_rows_hold_size_suites_mean_perplexity_and_retention(report):
    rows = {row.label: row.values for row in report_to_rows(report)}
    assert rows["Parameters"] == ("5.24 M", "1.72 M (33 %)", "1.72 M (33 %)")
    assert rows["Lexical (n = 240)"][1] == "78.0 % [72.0, 83.0]"
    assert rows["Mean accuracy"] == ("75.0 %", "73.0 %", "65.0 %")
    assert rows["Held-out perplexity"] == ("2.000", "2.100", "2.400")
    assert rows["Retained accuracy, above chance"] == ("", "92.0 %", "")


def test_prosody_is_shown_where_it_was_measured(report, tmp_path):
    assert "prosody" not in report_to_markdown(report)
    continuations = [
        StyledContinuation("a", "happy", ("happy", "happy", "sad"), 200.0),
        StyledContinuation("b", "sad", ("sad",), 150.0),
    ]
    report["prosody"] = dict.fromkeys(MODELS, measure_prosody(continuations))
    report["prosody"]["student"] = measure_prosody([*continuations[:1], StyledContinuation("b", "sad", (), None)])
    rows = {row.label: row.values for row in prosody_to_rows(report)}
    assert rows["Happy style tokens after happy prompts"] == ("66.7 %",) * 3
    assert rows["Happy style tokens after other prompts"][:2] == ("0.0 %", "undefined")
    assert rows["F0 after happy minus after sad prompts"][::2] == ("50.0 Hz",) * 2
    line = "| F0 after happy minus after sad prompts | 50.0 Hz | undefined |"
    assert line in report_to_markdown(report)
    report["continuations"] = []
    assert "Prosody of a prompt continued" in write_report(report, tmp_path).read_text()


def test_the_readme_table_is_replaced_between_its_markers(report, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{START_MARKER}\nold\n{END_MARKER}\nafter\n")
    write_between_markers(report_to_markdown(report), readme)
    once = readme.read_text()
    write_between_markers(report_to_markdown(report), readme)
    assert readme.read_text() == once
    assert once.startswith(f"before\n{START_MARKER}\n| | teacher | student |")
    assert once.endswith(f"\n{END_MARKER}\nafter\n")
    assert "old" not in once
    assert "| Held out (n = 5) | 1.0 % [0.0, 3.0] | 8.0 % [4.0, 12.0] |" in once


def test_a_readme_without_markers_is_refused(report, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("nothing here")
    with pytest.raises(ValueError, match="results:start"):
        write_between_markers(report_to_markdown(report), readme)
    assert readme.read_text() == "nothing here"
