"""The id layouts of the family, the checks on them, and what a saved configuration says to other programs."""

import dataclasses
import json

import pytest
from huggingface_hub.errors import StrictDataclassError

from tinywave.configuration_tinywave import (
    PRESETS,
    PROSODY_STREAMS,
    SPEECH_STREAMS,
    STREAM_FIELDS,
    STREAM_NAMES,
    SpeechEncoderConfig,
    TinyWaveConfig,
    VocoderConfig,
)
from tinywave.tokenization_tinywave import SpeechStreams

LANGUAGE_MODEL_AUTO_MAP = {
    "AutoConfig": "configuration_tinywave.TinyWaveConfig",
    "AutoModel": "modeling_tinywave.TinyWaveModel",
    "AutoModelForCausalLM": "modeling_tinywave.TinyWaveForCausalLM",
}


@pytest.mark.parametrize("name", ["speech-base-2b", "spirit-lm-7b"])
def test_published_base_ids(name):
    config = TinyWaveConfig.from_preset(name)
    assert (config.text_marker_id, config.speech_marker_id, config.vocab_size) == (32000, 32001, 32512)
    assert config.stream_ranges() == {"text": range(3, 32000), "unit": range(32002, 32503)}
    assert config.num_hidden_layers == (32 if name == "spirit-lm-7b" else 10)


@pytest.mark.parametrize("name", ["speech-expressive-2b", "interleaved-expressive-2b"])
def test_published_expressive_ids(name):
    config = TinyWaveConfig.from_preset(name)
    assert config.vocab_size == 32768
    assert config.stream_ranges() == {
        "text": range(3, 32000),
        "unit": range(32002, 32503),
        "pitch": range(32503, 32567),
        "style": range(32567, 32667),
    }


def test_published_architecture():
    config = TinyWaveConfig.from_preset("speech-base-2b")
    found = (config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.intermediate_size)
    assert found == (4096, 32, 32, 11008)
    assert (config.rms_norm_eps, config.max_position_embeddings, config.tie_word_embeddings) == (1e-5, 4096, False)
    assert config.rope_parameters["rope_theta"] == 100000.0


def test_nano_layout_leaves_twelve_filler_ids():
    teacher, student = TinyWaveConfig.from_preset("nano-teacher"), TinyWaveConfig.from_preset("nano-student")
    assert (teacher.num_hidden_layers, student.num_hidden_layers) == (11, 3)
    assert teacher.stream_ranges() == student.stream_ranges() == {"text": range(4, 510), "unit": range(512, 1012)}
    assert (teacher.head_dim, teacher.rope_parameters["rope_theta"]) == (32, 10000.0)


def test_nano_expressive_layout_continues_the_nano_one():
    teacher, student = (TinyWaveConfig.from_preset(f"nano-expressive-{name}") for name in ("teacher", "student"))
    assert (teacher.num_hidden_layers, student.num_hidden_layers) == (11, 3)
    assert teacher.stream_ranges() == student.stream_ranges()
    nano = TinyWaveConfig.from_preset("nano-student")
    assert student.stream_ranges() == {**nano.stream_ranges(), "pitch": range(1012, 1076), "style": range(1076, 1081)}
    assert student.vocab_size == 1088 and student.vocab_size % 64 == 0


@pytest.mark.parametrize("name", PRESETS)
def test_clocks_of_the_streams(name):
    config = TinyWaveConfig.from_preset(name)
    rates = (config.unit_rate, config.unit_clock_rate, config.pitch_rate, config.style_rate)
    assert rates == (25.0, 24.99, 12.5, 1.0)


def test_presets_take_overrides_and_stay_unchanged():
    config = TinyWaveConfig.from_preset("nano-student", num_hidden_layers=1, num_units=100)
    config.rope_parameters["rope_theta"] = 1.0
    assert (config.num_hidden_layers, config.num_units) == (1, 100)
    assert TinyWaveConfig.from_preset("nano-student").rope_parameters["rope_theta"] == 10000.0


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown preset 'tiny'.*speech-base-2b"):
        TinyWaveConfig.from_preset("tiny")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"unit_offset": 31000}, r"of text \(3..31999\) and of unit \(31000..31500\) overlap"),
        ({"text_marker_id": 32002}, "overlap"),
        ({"vocab_size": 32100}, "ids of unit are 32002..32502"),
        ({"num_pitch_tokens": 64}, "ids of pitch are -1..62"),
        ({"num_units": 0}, "at least one unit"),
        ({"num_units": "500"}, "expected int"),
        ({"unit_rate": 0.0}, "must be positive"),
        ({"unit_clock_rate": 0.0}, "unit_clock_rate is 0.0 Hz; it must be positive"),
        ({"pitch_rate": -12.5}, "pitch_rate is -12.5 Hz"),
        ({"style_rate": 0.0}, "style_rate is 0.0 Hz"),
        ({"pad_token_id": 40000}, "special id 40000"),
        ({"eos_token_id": None}, "must be set"),
        ({"hidden_size": 33}, "not a multiple"),
    ],
)
def test_wrong_layouts_are_refused_at_construction(overrides, message):
    with pytest.raises(StrictDataclassError, match=message):
        TinyWaveConfig(**overrides)


def test_plain_llama_folder_with_negative_padding_is_read(tmp_path):
    published = {"model_type": "llama", "vocab_size": 32512, "num_hidden_layers": 10, "pad_token_id": -1}
    (tmp_path / "config.json").write_text(json.dumps({**published, "rope_theta": 5000.0}))
    config = TinyWaveConfig.from_pretrained(tmp_path)
    assert config.pad_token_id == 0
    assert config.rope_parameters["rope_theta"] == 5000.0
    (tmp_path / "config.json").write_text(json.dumps(published))
    assert TinyWaveConfig.from_pretrained(tmp_path).rope_parameters["rope_theta"] == 10000.0


def test_several_eos_ids():
    assert TinyWaveConfig().eos_token_ids == [2]
    assert TinyWaveConfig(eos_token_id=[2, 5]).eos_token_ids == [2, 5]


@pytest.mark.parametrize("name", PRESETS)
def test_language_model_config_round_trip(name, tmp_path):
    config = TinyWaveConfig.from_preset(name)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["model_type"], saved["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert saved["auto_map"] == LANGUAGE_MODEL_AUTO_MAP
    assert TinyWaveConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("config", "auto_model"),
    [
        (SpeechEncoderConfig(backbone_config={"model_type": "whisper"}), "speech_encoder_tinywave.SpeechEncoder"),
        (VocoderConfig(hidden_size=64), "vocoder_tinywave.Vocoder"),
    ],
)
def test_other_configs_round_trip(config, auto_model, tmp_path):
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["auto_map"]["AutoModel"] == auto_model
    assert saved["auto_map"]["AutoConfig"] == f"configuration_tinywave.{type(config).__name__}"
    assert type(config).from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_speech_encoder_frame_rate():
    assert SpeechEncoderConfig().frame_rate == 25.0
    assert SpeechEncoderConfig(pooling=1).frame_rate == 50.0


@pytest.mark.parametrize(
    ("config_class", "overrides", "message"),
    [
        (SpeechEncoderConfig, {"pooling": 0}, "pooling is 0; it must be positive"),
        (VocoderConfig, {"kernel_size": 4}, "must be odd"),
        (VocoderConfig, {"num_mel_bins": 0}, "num_mel_bins is 0; it must be positive"),
    ],
)
def test_wrong_sizes_are_refused_at_construction(config_class, overrides, message):
    with pytest.raises(StrictDataclassError, match=message):
        config_class(**overrides)


def test_the_table_of_streams_names_fields_that_exist():
    config = TinyWaveConfig.from_preset("speech-expressive-2b")
    assert [*STREAM_FIELDS.values(), "ids"] == [field.name for field in dataclasses.fields(SpeechStreams)]
    assert list(config.stream_ranges()) == ["text", *STREAM_NAMES]
    assert config.prosody_streams == PROSODY_STREAMS == STREAM_NAMES[1:]
    for stream in SPEECH_STREAMS:
        assert {stream.size, stream.offset, stream.rate, stream.clock} <= {f.name for f in dataclasses.fields(config)}
        assert getattr(config, stream.size) == len(config.stream_ranges()[stream.name])
    assert config.with_streams(["unit"]).prosody_streams == ()
