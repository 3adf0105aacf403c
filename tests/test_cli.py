"""The command line as a user meets it: fast help, one clear line for bad input, exit codes."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tinywave.cli import main as command_line
from tinywave.data.audio_io import load_audio, write_audio

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "cli"
TEXTS = ["the old farmer walked to the market with his goat and sold some bread to a friend who talked"] * 9


def run(*arguments, **options):
    """Run `tinywave` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tinywave.cli.main", *map(str, arguments)], capture_output=True, text=True, **options
    )


def test_help_names_every_verb_and_imports_no_library():
    code = (
        "import sys\nfrom tinywave.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit as stop: assert stop.code == 0\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'soundfile', 'pyarrow'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"
    assert all(f"    {verb}" in output for verb in command_line.VERBS)


def test_every_verb_has_a_file_and_every_file_with_a_run_is_a_verb():
    files = {path.stem.replace("_", "-"): path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py")}
    assert {name for name, text in files.items() if "\ndef run(arguments)" in text} == set(command_line.VERBS)


@pytest.mark.parametrize("verb", command_line.VERBS)
def test_every_verb_declares_its_arguments(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        command_line.main([verb, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: tinywave {verb} ")
    assert f"example: tinywave {verb} " in " ".join(shown.split())
    assert callable(importlib.import_module(f"tinywave.cli.{verb.replace('-', '_')}").run)


def test_a_file_of_arguments_is_read_and_the_command_line_wins(recording, generate, tmp_path, capsys):
    config = tmp_path / "generate.yaml"
    config.write_text("seed: 1\nmax-new-tokens: 30\ntemperature: 0.8\n")
    expected = generate(recording, "--seed", "1", "--max-new-tokens", "30")
    np.testing.assert_array_equal(generate(recording, "--config", str(config), output="a.wav"), expected)
    other = generate(recording, "--config", str(config), "--seed", "2", output="b.wav")
    assert len(other) != len(expected) or not np.array_equal(other, expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sede: 1", "sets sede, which this verb does not have; it has prompt, output, text"),
        ("output_modality: smell", "sets output_modality to 'smell'; invalid choice: 'smell'"),
        ("- seed", "holds list; expected a mapping"),
    ],
)
def test_a_wrong_file_of_arguments_is_one_line(text, message, tmp_path, capsys):
    (tmp_path / "arguments.yaml").write_text(text)
    assert command_line.main(["generate", "in.wav", "out.wav", "--config", str(tmp_path / "arguments.yaml")]) == 2
    assert message in capsys.readouterr().err


def test_required_arguments_may_stand_in_the_file(tmp_path, capsys):
    (tmp_path / "plan.yaml").write_text("recipe: 7b_to_2b_base\njson: true\n")
    assert command_line.main(["plan", "--config", str(tmp_path / "plan.yaml")]) == 0
    assert json.loads(capsys.readouterr().out)


def test_without_a_verb_the_help_is_shown():
    result = run()
    assert result.returncode == 2
    assert "quickstart" in result.stdout


def test_an_unknown_verb_is_refused():
    result = run("quickstrat")
    assert result.returncode == 2
    assert "quickstrat" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_file_is_one_line(tmp_path, capsys):
    assert command_line.main(["encode", str(tmp_path / "nothing.wav")]) == 2
    errors = capsys.readouterr().err
    assert len(errors.splitlines()) == 1
    assert "nothing.wav does not exist" in errors


def test_debug_shows_the_traceback(tmp_path, capsys):
    assert command_line.main(["--debug", "encode", str(tmp_path / "nothing.wav")]) == 2
    errors = capsys.readouterr().err
    assert "Traceback" in errors
    assert errors.splitlines()[-1].startswith("tinywave: ")


def test_an_impossible_configuration_is_one_line(recording, language_model, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(language_model, folder)
    config = json.loads((folder / "config.json").read_text()) | {"num_units": 0}
    (folder / "config.json").write_text(json.dumps(config))
    assert command_line.main(["generate", str(recording), str(tmp_path / "out.wav"), "--model", str(folder)]) == 2
    message = capsys.readouterr().err
    assert "num_units is 0" in message and message.count("\n") == 1


def test_a_full_disk_says_what_to_do():
    line = command_line.describe_error(OSError(28, "No space left on device", "units.json"))
    assert "No space left on device" in line
    assert "free some space" in line


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    """Encoders of units, pitch and style and a vocoder, of the smallest size, with random weights."""
    from tinywave import (
        PitchEncoder,
        PitchEncoderConfig,
        SpeechCodec,
        SpeechEncoder,
        SpeechEncoderConfig,
        StyleEncoder,
        StyleEncoderConfig,
        Vocoder,
        VocoderConfig,
        load_f0_extractor,
    )

    torch.manual_seed(0)
    backbone = {"model_type": "whisper", "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2}
    backbone |= {"encoder_ffn_dim": 16, "num_mel_bins": 80}
    encoder = SpeechEncoder(SpeechEncoderConfig(backbone_config=backbone, layer=1, num_units=20)).eval()
    for tensor in encoder.quantizer.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) + 0.5)
    sizes = {"num_codes": 8, "hidden_size": 4, "code_size": 4, "f0_extractor": "swift-f0"}
    pitch_encoder = PitchEncoder(PitchEncoderConfig(**sizes)).eval()
    pitch_encoder.quantizer.codebook.normal_()
    backbone = {"model_type": "wav2vec2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    backbone |= {"intermediate_size": 16, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 4}
    backbone |= {"num_conv_pos_embedding_groups": 2}
    style_encoder = StyleEncoder(StyleEncoderConfig(backbone_config=backbone, num_styles=3, projector_size=8)).eval()
    sizes = {"num_units": 20, "hidden_size": 16, "num_layers": 2, "duration_hidden_size": 8}
    sizes |= {"num_pitch_tokens": 8, "num_style_tokens": 3, "optional_prosody": True}
    prosody = {"pitch_encoder": pitch_encoder, "style_encoder": style_encoder, "f0_extractor": load_f0_extractor()}
    folder = tmp_path_factory.mktemp("codec")
    SpeechCodec(encoder, Vocoder(VocoderConfig(**sizes)).eval(), **prosody).save_pretrained(folder)
    return folder


def tone(seconds=1.0, sampling_rate=44_100):
    times = np.arange(int(seconds * sampling_rate)) / sampling_rate
    return 0.3 * np.sin(2 * np.pi * 300 * times * (1 + times))


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("recording") / "tone.wav"
    soundfile.write(path, np.stack([tone()] * 2, axis=1), 44_100)
    return path


def encode(path, codec, capsys) -> dict:
    capsys.readouterr()
    assert command_line.main(["encode", str(path), "--json", "--codec", str(codec)]) == 0
    return json.loads(capsys.readouterr().out)


def decode(record, codec, folder) -> np.ndarray:
    """What `decode` speaks of a record; with a vocoder of 24 kHz."""
    tokens, output = folder / "tokens.json", folder / "out.wav"
    tokens.write_text(json.dumps(record))
    assert command_line.main(["decode", str(tokens), str(output), "--codec", str(codec), "--griffin-lim"]) == 0
    waveform, sampling_rate = soundfile.read(output)
    assert sampling_rate == 24_000
    return waveform


def test_a_recording_goes_to_tokens_and_back(recording, codec, tmp_path, capsys):
    record = encode(recording, codec, capsys)
    assert [len(record[name]) for name in ("units", "pitch", "style")] == [25, 12, 1]
    assert record["seconds"] == 1.0
    assert (record["unit_rate"], record["pitch_rate"], record["style_rate"]) == (25.0, 12.5, 1.0)
    assert record["tokens"][:2] == [f"[St{record['style'][0]}]", f"[Pi{record['pitch'][0]}]"]
    assert len(decode(record, codec, tmp_path)) == 24_000
    file = tmp_path / "record.json"
    arguments = ["encode", str(recording), "--codec", str(codec)]
    assert command_line.main([*arguments, "--output", str(file)]) == 0
    assert json.loads(file.read_text()) == record
    capsys.readouterr()
    assert command_line.main(arguments) == 0
    assert capsys.readouterr().out == "".join(record["tokens"]) + "\n"


def test_parts_of_a_record_are_enough(recording, codec, tmp_path, capsys):
    record = encode(recording, codec, capsys)
    spoken = decode({"tokens": record["tokens"]}, codec, tmp_path)
    assert len(spoken) > 0 and len(spoken) % 960 == 0  # whole units of 40 ms, of predicted durations
    plain = decode({"units": record["units"]}, codec, tmp_path)
    assert len(plain) == 24_000 and not np.array_equal(plain, decode(record, codec, tmp_path))


def test_every_rate_and_number_of_channels_is_read(recording, codec, tmp_path, capsys):
    """Units depend on the sound, not on the file: the same tone at other rates is one second of tokens."""
    for number, (rate, channels, suffix) in enumerate([(8_000, 1, "wav"), (16_000, 1, "flac"), (48_000, 3, "wav")]):
        path = tmp_path / f"{number}.{suffix}"
        soundfile.write(path, np.stack([tone(sampling_rate=rate)] * channels, axis=1), rate)
        record = encode(path, codec, capsys)
        assert (record["seconds"], len(record["units"])) == (1.0, 25)


def test_overdriven_audio_is_clipped(codec, tmp_path, capsys):
    loud = 5 * tone(sampling_rate=16_000)
    soundfile.write(tmp_path / "loud.wav", loud, 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "clipped.wav", np.clip(loud, -1, 1), 16_000, subtype="FLOAT")
    assert encode(tmp_path / "loud.wav", codec, capsys) == encode(tmp_path / "clipped.wav", codec, capsys)


def test_silence_and_whisper_have_tokens_like_any_sound(codec, tmp_path, capsys):
    """Neither has a voiced frame: pitch is what the encoder makes of no melody at all, the same for both."""
    whisper = np.random.default_rng(0).normal(0, 0.05, 32_000)
    pitch = []
    for name, waveform in (("silence", np.zeros(32_000)), ("whisper", whisper)):
        soundfile.write(tmp_path / f"{name}.wav", waveform, 16_000)
        record = encode(tmp_path / f"{name}.wav", codec, capsys)
        assert [len(record[stream]) for stream in ("units", "pitch", "style")] == [50, 25, 2]
        assert len(decode(record, codec, tmp_path)) == 48_000
        pitch.append(record["pitch"])
    assert pitch[0] == pitch[1]


@pytest.mark.parametrize(("waveform", "message"), [
    (np.zeros(800), "lasts 50 ms; speech units need at least"),
    (np.full(16_000, np.nan), "holds 16000 NaN or infinite samples"),
    (np.zeros(0), "holds no audio samples"),
])  # fmt: skip
def test_unusable_audio_is_one_line(waveform, message, codec, tmp_path, capsys):
    path = tmp_path / "bad.wav"
    soundfile.write(path, waveform, 16_000, subtype="FLOAT")
    assert command_line.main(["encode", str(path), "--codec", str(codec)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "tinywave: warning" not in line]
    assert len(errors) == 1 and message in errors[0]


def test_a_recording_of_blanks_alone_is_one_line(codec, tmp_path, capsys):
    """A linear quantizer that finds a blank everywhere has found no speech."""
    from tinywave import SpeechEncoder, SpeechEncoderConfig

    backbone = {"model_type": "whisper", "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2}
    backbone |= {"encoder_ffn_dim": 16, "num_mel_bins": 80}
    config = SpeechEncoderConfig(backbone_config=backbone, layer=1, num_units=20, quantizer="linear")
    encoder = SpeechEncoder(config)
    encoder.quantizer.layers[0].bias.data[20] = 1e4
    encoder.save_pretrained(tmp_path / "encoder")
    soundfile.write(tmp_path / "silence.wav", np.zeros(16_000), 16_000)
    arguments = ["encode", str(tmp_path / "silence.wav"), "--codec", str(codec)]
    assert command_line.main([*arguments, "--speech-encoder", str(tmp_path / "encoder")]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("tinywave: warning: ") and "silence.wav is silent" in warning
    assert "all 25 frames are blank" in error and "not silent" in error


@pytest.mark.parametrize(("content", "message"), [
    ("not json", "is not JSON"),
    ("[1, 2]", "expected a JSON object"),
    ('{"units": null, "tokens": null}', 'has neither "units" nor "tokens"'),
    ('{"units": [1, "two"]}', '"units" in'),
    ('{"units": [1], "pitch": 3}', '"pitch" in'),
    ('{"tokens": [3]}', "must be a list of names"),
    ('{"units": []}', "at least one unit"),
    ('{"tokens": []}', "at least one unit"),
    ('{"units": [20]}', "between 20 and 20"),
    ('{"units": [1], "pitch": [8]}', "between 8 and 8; this vocoder knows 0 to 7"),
    ('{"units": [1, 2], "style": []}', "found 0.00 s of style for 0.08 s of units"),
    ('{"units": [1, 2], "pitch": [1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7]}', "1.20 s of pitch for 0.08 s"),
    ('{"tokens": ["[Hu3]", "[Hu20]"]}', "token '[Hu20]' at position 1 is unknown; this layout has 20 unit"),
    ('{"tokens": ["[Speech]", "[Hu3]"]}', "at position 0 is not speech"),
    ('{"units": [1], "codec": "0123456789abcdef"}', "is of the codec 0123456789abcdef, this one is"),
])  # fmt: skip
def test_unusable_records_are_refused(content, message, codec, tmp_path, capsys):
    tokens, output = tmp_path / "tokens.json", tmp_path / "out.wav"
    tokens.write_text(content)
    assert command_line.main(["decode", str(tokens), str(output), "--codec", str(codec), "--griffin-lim"]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert not output.exists()


def test_a_codec_without_a_vocoder_cannot_decode(recording, codec, tmp_path, capsys):
    shutil.copytree(codec, tmp_path / "mute", ignore=shutil.ignore_patterns("vocoder"))
    record = encode(recording, tmp_path / "mute", capsys)
    (tmp_path / "tokens.json").write_text(json.dumps(record))
    arguments = ["decode", str(tmp_path / "tokens.json"), str(tmp_path / "out.wav"), "--codec", str(tmp_path / "mute")]
    assert command_line.main(arguments) == 2
    assert "has no vocoder" in capsys.readouterr().err


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """A language model of the smallest size with random weights, its tokenizer and its processor."""
    from tinywave import TinyWaveConfig, TinyWaveForCausalLM, TinyWaveProcessor
    from tinywave.tokenization_tinywave import build_tokenizer, train_text_tokenizer

    config = TinyWaveConfig(
        text_vocab_size=300,
        text_offset=4,
        text_marker_id=300,
        speech_marker_id=301,
        unit_offset=302,
        num_units=20,
        vocab_size=322,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("language_model")
    TinyWaveForCausalLM(config).save_pretrained(folder)
    tokenizer = build_tokenizer(config, train_text_tokenizer(TEXTS, config))
    TinyWaveProcessor.from_config(config, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def generate(codec, language_model, tmp_path):
    """Run `tinywave generate`, by default on to a file; return the waveform, or None where there is no such file."""

    def run_verb(*arguments, output="out.wav"):
        files = [] if output is None else [str(tmp_path / output)]
        prompts = [str(argument) for argument in arguments if isinstance(argument, Path)]
        options = [argument for argument in arguments if not isinstance(argument, Path)]
        exit_code = command_line.main([
            "generate", *prompts, *files, "--model", str(language_model), "--codec", str(codec), "--griffin-lim",
            "--max-new-tokens", "30", *options,
        ])  # fmt: skip
        assert exit_code == 0
        written = tmp_path / (output or "out.wav")
        return soundfile.read(written)[0] if written.exists() else None

    return run_verb


def test_a_recording_is_continued(recording, generate):
    first = generate(recording, "--seed", "1")
    assert len(first) > 0
    assert len(first) % 960 == 0  # whole units of 40 ms at 24 kHz
    np.testing.assert_array_equal(generate(recording, "--seed", "1", output="again.wav"), first)
    other = generate(recording, "--seed", "2", output="other.wav")
    assert len(other) != len(first) or not np.array_equal(other, first)
    with_prompt = generate(recording, "--seed", "1", "--with-prompt", output="whole.wav")
    # The same speech, as loud as the prompt.
    assert len(with_prompt) == 24_000 + len(first)
    assert np.corrcoef(with_prompt[24_000:], first)[0, 1] > 0.9


def test_parallel_heads_are_asked_for_by_name_and_have_to_be_there(recording, codec, language_model, tmp_path, capsys):
    from tinywave import TinyWaveForCausalLM, TinyWaveProcessor

    arguments = [str(recording), str(tmp_path / "out.wav"), "--codec", str(codec), "--griffin-lim"]
    arguments += ["--temperature", "0"]
    options = ["--max-new-tokens", "12", "--parallel-heads"]
    assert command_line.main(["generate", *arguments, *options, "--model", str(language_model)]) == 2
    assert "found a model without parallel heads" in capsys.readouterr().err
    model = TinyWaveForCausalLM.from_pretrained(language_model, num_parallel_heads=2)
    model.save_pretrained(tmp_path / "heads")
    TinyWaveProcessor.from_pretrained(language_model).save_pretrained(tmp_path / "heads")
    assert command_line.main(["generate", *arguments, *options, "--model", str(tmp_path / "heads")]) == 0
    drafted = load_audio(tmp_path / "out.wav")
    assert command_line.main(["generate", *arguments, *options[:2], "--model", str(tmp_path / "heads")]) == 0
    np.testing.assert_array_equal(load_audio(tmp_path / "out.wav"), drafted)


def test_a_folder_is_continued_in_batches_and_resumed(recording, codec, language_model, tmp_path, capsys):
    prompts, output = tmp_path / "prompts", tmp_path / "continued"
    prompts.mkdir()
    for index in range(3):
        waveform = load_audio(recording)[: 6_000 + 2_000 * index]
        write_audio(prompts / f"{index}.wav", waveform, 16_000)
    (prompts / "broken.wav").write_bytes(b"no audio")
    (prompts / "notes.txt").write_text("not a recording")
    options = ["--model", str(language_model), "--codec", str(codec), "--griffin-lim", "--max-new-tokens", "8"]
    command = ["generate", "--input-dir", str(prompts), "--output-dir", str(output), "--batch-size", "2", *options]
    assert command_line.main(command) == 2, "one of the recordings cannot be read"
    assert "broken.wav" in capsys.readouterr().err
    assert sorted(path.name for path in output.iterdir()) == ["0.wav", "1.wav", "2.wav"]
    written = {path.name: path.read_bytes() for path in output.iterdir()}
    (prompts / "broken.wav").unlink()
    (output / "1.wav").unlink()
    assert command_line.main(command) == 0
    again = {path.name: path.read_bytes() for path in output.iterdir()}
    assert again.keys() == written.keys() and again["0.wav"] == written["0.wav"]
    assert len(load_audio(output / "1.wav")) > 0
    assert command_line.main(["generate", str(recording), *command[1:]]) == 2
    assert "found a prompt beside --input-dir" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert command_line.main(["generate", "--input-dir", str(tmp_path / "empty"), "--output-dir", str(output)]) == 2
    assert "contains no recording" in capsys.readouterr().err


def test_text_is_continued_in_speech(recording, generate, tmp_path, capsys):
    spoken = generate("--text", "the old farmer")
    assert len(spoken) > 0 and capsys.readouterr().out == f"{tmp_path / 'out.wav'}\n"
    after_speech = generate(recording, "--text", "the old farmer", output="both.wav")
    with_prompt = generate(recording, "--text", "the old farmer", "--with-prompt", output="whole.wav")
    # The same speech, as loud as the prompt.
    assert len(with_prompt) == 24_000 + len(after_speech)
    assert np.corrcoef(with_prompt[24_000:], after_speech)[0, 1] > 0.9


def test_text_is_printed_and_needs_no_file(recording, generate, capsys):
    assert generate(recording, "--output-modality", "text", output=None) is None
    answer = capsys.readouterr().out
    assert answer.strip() and answer.endswith("\n") and ".wav" not in answer
    generate("--text", "the old farmer", "--output-modality", "text", output=None)
    assert capsys.readouterr().out != answer


def test_free_output_is_printed_and_written(recording, generate, tmp_path, capsys):
    """With a thousandth of the ids being markers, a hundred tokens of a model that knows nothing have some."""
    spoken = generate(recording, "--output-modality", "free", "--max-new-tokens", "90", "--top-k", "322")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 1 and lines[-1] == str(tmp_path / "out.wav") and len(spoken) % 960 == 0


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "found no file for the speech"),
    (["out.wav"], "found nothing to continue"),
    (["--output-modality", "text"], "found nothing to continue"),
    (["out.wav", "--text", "a", "--with-prompt"], "--with-prompt without a recording"),
])  # fmt: skip
def test_a_prompt_and_a_file_are_asked_for(arguments, message, capsys):
    assert command_line.main(["generate", *arguments]) == 2
    errors = capsys.readouterr().err
    assert message in errors and len(errors.splitlines()) == 1


@pytest.mark.parametrize(("text", "message"), [
    ("", "segment 0 is empty"),
    ("[Hu3]", "contains the token '[Hu3]'"),
    (os.fsdecode(b"caf\xe9"), "not valid Unicode at character 3"),
])  # fmt: skip
def test_unusable_text_is_one_line(text, message, codec, language_model, tmp_path, capsys):
    files = [str(tmp_path / "out.wav"), "--model", str(language_model), "--codec", str(codec), "--griffin-lim"]
    assert command_line.main(["generate", *files, "--text", text]) == 2
    errors = capsys.readouterr().err
    assert message in errors and len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--temperature", "-1"],
        ["--temperature", "nan"],
        ["--top-k", "0"],
        ["--max-new-tokens", "0"],
        ["--min-new-tokens", "-1"],
    ],
)
def test_unusable_sampling_is_refused(options, recording, tmp_path, capsys):
    assert command_line.main(["generate", str(recording), str(tmp_path / "out.wav"), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tinywave: argument {options[0]}: found '{options[1]}'; expected a ")


def test_a_folder_without_a_model_is_refused(recording, tmp_path, capsys):
    arguments = ["generate", str(recording), str(tmp_path / "out.wav"), "--model", str(tmp_path / "nowhere")]
    assert command_line.main(arguments) == 2
    assert "contains no model: config.json is missing" in capsys.readouterr().err


def test_a_full_disk_while_writing_is_one_line(recording, codec):
    """/dev/full refuses every write with ENOSPC."""
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "tinywave.cli.main", "encode", str(recording), "--json", "--codec", codec],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("tinywave: [Errno 28] No space left on device; free some space")
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


def test_control_c_leaves_one_line_and_130(tmp_path):
    fifo = tmp_path / "units.json"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        [sys.executable, "-m", "tinywave.cli.main", "decode", str(fifo), str(tmp_path / "out.wav")],
        stderr=subprocess.PIPE,
        text=True,
    )
    # `open` returns once the other side has opened the pipe too: the process is then inside the verb, reading.
    with open(fifo, "w"):
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().startswith("tinywave: interrupted")
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "out.wav").exists()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "num_lines"),
    [
        ("encode {recording} --codec {codec} --output {output} <&- >&- 2>&-", 0, 0),
        ("encode {recording} --codec {codec} --output {output} >&-", 0, 0),
        ("encode {output} 2>/dev/full", 2, 0),
        ("encode --help >/dev/full", 2, 1),
        ("encode --help >&-", 0, 0),
        ("encode --help | true", 141, 0),
    ],
)
def test_closed_and_full_streams_have_the_documented_exit_code(
    arguments, exit_code, num_lines, recording, codec, tmp_path
):
    arguments = arguments.format(recording=recording, codec=codec, output=tmp_path / "tokens.json")
    command = f"set -o pipefail; {sys.executable} -m tinywave.cli.main {arguments}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.returncode == exit_code
    assert len(result.stderr.splitlines()) == num_lines
    assert (tmp_path / "tokens.json").exists() == ("--output" in arguments)


def test_names_are_printed_where_the_terminal_knows_no_such_letters(recording, codec, tmp_path):
    written = tmp_path / "tokens-\u97f3.json"
    environment = os.environ | {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"}
    arguments = ["encode", str(recording), "--codec", codec, "--output", str(written)]
    command = [sys.executable, "-m", "tinywave.cli.main", *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.rstrip().endswith(r"tokens-\u97f3.json") and written.is_file()
