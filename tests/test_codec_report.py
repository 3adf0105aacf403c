"""A whole report of a tiny codec on real speech: every part, the page made from it, and what is not done twice."""

import copy
import json

import numpy as np
import pytest
import soxr
import torch

from tinywave.configuration_tinywave import SpeechEncoderConfig, VocoderConfig
from tinywave.data.hibari_voice import STYLES, HibariVoice
from tinywave.eval.codec_contours import draw_contours
from tinywave.eval.codec_material import HeldOutUtterance
from tinywave.eval.codec_report import CodecMaterial, CodecReport
from tinywave.eval.codec_resynthesis import BASE, EXPRESSIVE, ORIGINAL, WITHOUT_PITCH, spoken_variants
from tinywave.eval.codec_table import PICTURE, report_to_markdown, write_page
from tinywave.speech_encoder_tinywave import SpeechEncoder
from tinywave.vocoder_tinywave import Vocoder

TEXTS = ("The dog found a golden key.", "She opened the old door.")


@pytest.fixture(scope="module")
def utterances():
    voice = HibariVoice()
    items = []
    for style in ("happy", "sad"):
        for text in TEXTS:
            spoken = voice.synthesize(text, style=style)
            waveform = soxr.resample(spoken.waveform, spoken.sampling_rate, 16_000)
            phones = [{"phone": label, "start": start, "end": end} for label, start, end in spoken.phones]
            items.append(HeldOutUtterance(f"{style}-{text[:3]}", waveform, text, style, style, phones))
    return items


@pytest.fixture(scope="module")
def codec(expressive_codec):
    codec = copy.copy(expressive_codec)
    torch.manual_seed(1)
    sizes = {"num_units": 500, "hidden_size": 16, "num_layers": 2, "duration_hidden_size": 16}
    streams = {"num_pitch_tokens": 64, "num_style_tokens": len(STYLES), "optional_prosody": True}
    codec.vocoder = Vocoder(VocoderConfig(**sizes, **streams)).eval()
    return codec


@pytest.fixture(scope="module")
def teacher(codec):
    """An encoder of as many units that differs from the codec's own in its centroids."""
    teacher = SpeechEncoder(SpeechEncoderConfig.from_dict(codec.speech_encoder.config.to_dict())).eval()
    teacher.load_state_dict(codec.speech_encoder.state_dict())
    teacher.quantizer.centroids.copy_(teacher.quantizer.centroids.roll(100, dims=0))
    teacher.quantizer.centroids[100:] = codec.speech_encoder.quantizer.centroids[100:]
    return teacher


@pytest.fixture(scope="module")
def folders(codec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("codec")
    codec.save_pretrained(folder)
    return {part: folder / part for part in ("speech_encoder", "pitch_encoder", "style_encoder", "vocoder")}


@pytest.fixture(scope="module")
def material(utterances):
    clips = [HeldOutUtterance(item.id, item.waveform, item.text) for item in utterances[:2]]
    sets = {"hibari": utterances, "librivox": clips}
    return CodecMaterial(sets, lambda: utterances, clips="librivox", shown="hibari")


def hear_the_dog(waveform, sampling_rate):
    """A recogniser that is right about half of the recordings."""
    return TEXTS[0]


@pytest.fixture(scope="module")
def finished(codec, folders, teacher, material, tmp_path_factory):
    report = CodecReport(codec, folders, teacher, material, tmp_path_factory.mktemp("report"), hear_the_dog)
    return report, report.measure()


def test_every_part_is_measured(finished, folders, codec):
    report, record = finished
    assert json.loads((report.output_folder / "codec.json").read_text()) == record
    units = record["units"]["hibari"]
    assert 0 < units["frame_accuracy"]["value"] < 1 and units["frame_accuracy"]["n"] == 4
    assert all(0 < units["pnmi"][name]["value"] <= 1 for name in ("codec", "teacher"))
    assert record["units"]["librivox"]["pnmi"] == {"not_measured": "the phones of this set are not timed"}
    assert record["voice_distance"]["codec"]["n"] == 2  # two sentences, one pair of voices
    assert all(record["speed"][name]["value"] > 0 for name in ("speech_encoder", "teacher", "encode", "decode"))
    assert record["versions"]["numpy"] == np.__version__
    for part, folder in folders.items():
        assert record["sizes"][part]["bytes"] == (folder / "model.safetensors").stat().st_size
    numbers = sum(tensor.numel() for tensor in codec.vocoder.state_dict().values())
    assert record["sizes"]["vocoder"]["parameters"] == numbers
    assert record["sizes"]["total"]["parameters"] == sum(record["sizes"][part]["parameters"] for part in folders)


def test_tokens_do_not_depend_on_batches_streams_and_files(finished):
    invariances = finished[1]["invariances"]
    for name in ("batch_1_equals_8", "saved_equals_loaded"):
        assert invariances[name]["equal"] and invariances[name]["num_tokens"] > 100
    assert "depend on the whole utterance" in invariances["streamed_equals_whole"]["not_measured"]
    streamed = invariances["vocoder_streamed_equals_whole"]
    assert streamed["max_difference"] <= 1e-4 * streamed["scale"]
    assert invariances["saved_waveform_equals_loaded"]["max_difference"] == 0


def test_lengths_are_those_of_the_published_test_vector(finished):
    golden = finished[1]["golden_vector"]
    assert (golden["num_samples"], golden["reference_tokens"]) == (146_160, 167 + 90 + 10)
    # An encoder on Whisper pads, and so has the same number of units here.
    assert golden["frames"] == {"unit": 228, "pitch": 114, "style": 10} and golden["equal"]
    assert 10 < golden["num_tokens"] <= 228 + 114 + 10


def test_resynthesis_is_measured_in_every_way_of_speaking(finished):
    record = finished[1]["resynthesis"]["hibari"]
    # The recogniser always hears the first text: of the second text's five words four are replaced, "the" is not.
    rates = {name: record["word_error_rate"][name]["value"] for name in (ORIGINAL, BASE, EXPRESSIVE)}
    assert len(set(rates.values())) == 1 and 0 < rates[ORIGINAL] < 1
    assert set(record["f0_correlation"]) == {BASE, WITHOUT_PITCH, EXPRESSIVE}
    assert -1 <= record["pitch_code_correlation"]["value"] <= 1
    accuracy = record["style_accuracy"][ORIGINAL]
    assert set(accuracy["window"]) == {"overall", "happy", "sad"} and accuracy["utterance"]["happy"]["n"] == 2
    assert "not_measured" in finished[1]["resynthesis"]["librivox"]["style_accuracy"]


def test_a_finished_part_is_not_measured_again(finished, codec, folders, teacher, material):
    report, record = finished

    def refuse(waveform, sampling_rate):
        raise AssertionError("everything is there already")

    again = CodecReport(codec, folders, teacher, material, report.output_folder, refuse)
    assert again.measure() == record
    other_seed = CodecReport(codec, folders, teacher, material, report.output_folder, refuse, seed=1)
    with pytest.raises(AssertionError, match="there already"):
        other_seed.measure_resynthesis("hibari")


def test_an_interrupted_set_goes_on_where_it_stopped(codec, folders, teacher, material, tmp_path):
    heard = []

    def stop_at_the_third(waveform, sampling_rate):
        heard.append(len(waveform))
        if len(heard) == 7:  # three transcripts of each recording
            raise KeyboardInterrupt
        return TEXTS[0]

    report = CodecReport(codec, folders, teacher, material, tmp_path, stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        report.measure_resynthesis("hibari")
    assert len(json.loads((tmp_path / "parts" / "resynthesis_hibari.json").read_text())["rows"]) == 2
    report.measure_resynthesis("hibari")
    assert len(heard) == 7 + 6


def test_the_page_shows_the_report(finished, tmp_path):
    report, record = finished
    draw_contours(report.trace(), report.output_folder / PICTURE)
    page = tmp_path / "codec.md"
    page.write_text("before\n<!-- results:start -->\nearlier tables\n<!-- results:end -->\nafter\n")
    write_page(record, report.output_folder / PICTURE, page)
    text = page.read_text()
    assert text.startswith("before\n<!-- results:start -->\n|") and text.endswith("<!-- results:end -->\nafter\n")
    assert report_to_markdown(record) in text and "earlier tables" not in text
    assert json.loads((tmp_path / "codec.json").read_text()) == record
    assert (tmp_path / PICTURE).read_text().startswith("<?xml")
    for table in text.split("\n\n"):
        widths = {line.count("|") for line in table.splitlines() if line.startswith("|")}
        assert len(widths) <= 1
    page.write_text("no markers")
    with pytest.raises(ValueError, match="results:start"):
        write_page(record, report.output_folder / PICTURE, page)


def test_a_vocoder_speaks_only_in_the_ways_it_can(codec, expressive_codec):
    assert set(spoken_variants(codec)) == {BASE, WITHOUT_PITCH, EXPRESSIVE}
    assert set(spoken_variants(expressive_codec)) == {BASE}
    strict = copy.copy(codec)
    config = copy.copy(codec.vocoder.config)
    config.optional_prosody = False
    strict.vocoder = Vocoder(config)
    assert set(spoken_variants(strict)) == {EXPRESSIVE}
    with pytest.raises(ValueError, match="no vocoder"):
        silent = copy.copy(codec)
        silent.vocoder = None
        CodecReport(silent, {}, codec.speech_encoder, None, "unused")
