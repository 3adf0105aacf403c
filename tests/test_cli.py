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
    assert capsys.readouterr().out.startswith(f"usage: tinywave {verb} ")
    assert callable(importlib.import_module(f"tinywave.cli.{verb.replace('-', '_')}").run)


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
def speech_encoder(tmp_path_factory):
    """A complete speech encoder of the smallest size, with random weights."""
    from transformers import WhisperConfig

    from tinywave import SpeechEncoder, SpeechEncoderConfig

    backbone = WhisperConfig(
        d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, num_mel_bins=80
    ).to_dict() | {"model_type": "whisper"}
    torch.manual_seed(0)
    encoder = SpeechEncoder(SpeechEncoderConfig(backbone_config=backbone, layer=1, num_units=20))
    for tensor in encoder.quantizer.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) + 0.5)
    folder = tmp_path_factory.mktemp("speech_encoder")
    encoder.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vocoder(tmp_path_factory):
    """A vocoder of the smallest size, with random weights."""
    from tinywave import Vocoder, VocoderConfig

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vocoder")
    Vocoder(VocoderConfig(num_units=20, hidden_size=16, num_layers=1, duration_hidden_size=8)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("recording") / "tone.wav"
    times = np.arange(44_100) / 44_100
    soundfile.write(path, np.stack([0.3 * np.sin(2 * np.pi * 300 * times * (1 + times))] * 2, axis=1), 44_100)
    return path


def test_a_recording_goes_to_units_and_back(recording, speech_encoder, vocoder, tmp_path, capsys):
    assert command_line.main(["encode", str(recording), "--speech-encoder", str(speech_encoder)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert sum(record["durations"]) == 25
    assert all(0 <= unit < 20 for unit in record["units"])
    assert record["seconds"] == 1.0
    units = tmp_path / "units.json"
    command_line.main(["encode", str(recording), "--speech-encoder", str(speech_encoder), "--output", str(units)])
    assert json.loads(units.read_text()) == record
    output = tmp_path / "back.wav"
    assert command_line.main(["decode", str(units), str(output), "--vocoder", str(vocoder), "--griffin-lim"]) == 0
    waveform, sampling_rate = soundfile.read(output)
    assert (len(waveform), sampling_rate) == (24_000, 24_000)


@pytest.mark.parametrize(("content", "message"), [
    ("not json", "is not JSON"),
    ("[1, 2]", 'has no "units"'),
    ('{"units": [1, "two"]}', "list of whole numbers"),
    ('{"units": []}', "at least one unit"),
    ('{"units": [20]}', "between 20 and 20"),
    ('{"units": [1, 2], "durations": [1]}', "durations"),
])
def test_unusable_units_are_refused(content, message, vocoder, tmp_path, capsys):
    units = tmp_path / "units.json"
    units.write_text(content)
    output = tmp_path / "out.wav"
    assert command_line.main(["decode", str(units), str(output), "--vocoder", str(vocoder), "--griffin-lim"]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert not output.exists()


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """A language model of the smallest size with random weights, its tokenizer and its processor."""
    from tinywave import TinyWaveConfig, TinyWaveForCausalLM, TinyWaveProcessor
    from tinywave.tokenization_tinywave import build_tokenizer, train_text_tokenizer

    config = TinyWaveConfig(
        text_vocab_size=300, text_offset=4, text_marker_id=300, speech_marker_id=301, unit_offset=302, num_units=20,
        vocab_size=322,
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("language_model")
    TinyWaveForCausalLM(config).save_pretrained(folder)
    tokenizer = build_tokenizer(config, train_text_tokenizer(TEXTS, config))
    TinyWaveProcessor.from_config(config, tokenizer).save_pretrained(folder)
    return folder


def test_a_recording_is_continued(recording, speech_encoder, vocoder, language_model, tmp_path):
    def generate(name, *options):
        output = tmp_path / name
        exit_code = command_line.main([
            "generate", str(recording), str(output), "--model", str(language_model), "--vocoder", str(vocoder),
            "--speech-encoder", str(speech_encoder), "--griffin-lim", "--max-new-tokens", "30", *options,
        ])
        assert exit_code == 0
        return soundfile.read(output)[0]

    first = generate("first.wav", "--seed", "1")
    assert len(first) > 0
    assert len(first) % 960 == 0  # whole units of 40 ms at 24 kHz
    np.testing.assert_array_equal(generate("again.wav", "--seed", "1"), first)
    other = generate("other.wav", "--seed", "2")
    assert len(other) != len(first) or not np.array_equal(other, first)
    with_prompt = generate("whole.wav", "--seed", "1", "--with-prompt")
    np.testing.assert_array_equal(with_prompt[24_000:], first)


@pytest.mark.parametrize("options", [["--temperature", "-1"], ["--top-k", "0"], ["--max-new-tokens", "0"]])
def test_unusable_sampling_is_refused(options, recording, tmp_path, capsys):
    assert command_line.main(["generate", str(recording), str(tmp_path / "out.wav"), *options]) == 2
    assert "expected a temperature of 0 or more" in capsys.readouterr().err


def test_a_folder_without_a_model_is_refused(recording, tmp_path, capsys):
    arguments = ["generate", str(recording), str(tmp_path / "out.wav"), "--model", str(tmp_path / "nowhere")]
    assert command_line.main(arguments) == 2
    assert "holds no TinyWaveForCausalLM" in capsys.readouterr().err


def test_a_full_disk_while_writing_is_one_line(recording, speech_encoder):
    """/dev/full refuses every write with ENOSPC."""
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "tinywave.cli.main", "encode", str(recording), "--speech-encoder", speech_encoder],
            stdout=full, stderr=subprocess.PIPE, text=True,
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
        stderr=subprocess.PIPE, text=True,
    )
    # `open` returns once the other side has opened the pipe too: the process is then inside the verb, reading.
    with open(fifo, "w"):
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().startswith("tinywave: interrupted")
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "out.wav").exists()
