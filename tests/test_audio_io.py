"""Audio of every kind is converted or refused by name."""

import io

import numpy as np
import pytest
import soundfile

from tinywave.data.audio_io import AudioError, convert_waveform, load_audio, waveform_to_flac_bytes, write_audio


def sine(sampling_rate, seconds=0.5, frequency=440.0, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(int(sampling_rate * seconds)) / sampling_rate)


def encoded(samples, sampling_rate, audio_format="WAV", subtype=None):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sampling_rate, format=audio_format, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize("sampling_rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("audio_format", "subtype"), [("WAV", "DOUBLE"), ("WAV", "PCM_16"), ("FLAC", "PCM_24")])
def test_any_rate_channels_and_format_become_16_khz_mono_float32(sampling_rate, channels, audio_format, subtype):
    samples = np.repeat(sine(sampling_rate)[:, None], channels, axis=1)
    waveform = load_audio(encoded(samples, sampling_rate, audio_format, subtype))
    assert waveform.dtype == np.float32 and waveform.shape == (8000,)
    # Away from the edges, where the resampling filter sees silence, it is the same sine.
    np.testing.assert_allclose(waveform[800:-800], sine(16000)[800:-800], atol=2e-3)


def test_channels_are_averaged():
    left = sine(16000)
    waveform = load_audio(encoded(np.stack([left, -left], axis=1), 16000, subtype="FLOAT"))
    assert np.abs(waveform).max() < 1e-6


def test_path_bytes_and_file_objects_give_the_same(tmp_path):
    data = encoded(sine(16000), 16000)
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    expected = load_audio(path)
    for source in (str(path), data, io.BytesIO(data)):
        np.testing.assert_array_equal(load_audio(source), expected)


def test_target_rate_is_respected():
    assert load_audio(encoded(sine(16000), 16000), sampling_rate=24000).shape == (12000,)


def test_overshoots_are_clipped():
    waveform = convert_waveform(np.sign(sine(16000, frequency=50.0)) * 1.2, 16000)
    assert waveform.min() == -1.0 and waveform.max() == 1.0


BAD_FILES = {
    "empty.wav": (b"", "empty file"),
    "text.wav": (b"this is not audio, but it is long enough to look like a header", "not audio"),
    "silent.wav": (encoded(np.zeros(0), 16000), "no audio samples"),
    "nan.wav": (encoded(np.array([0.0, np.nan, 0.1, np.inf]), 16000, subtype="FLOAT"), "2 NaN or infinite samples"),
    "cut.flac": (encoded(sine(16000, 2.0), 16000, "FLAC")[:20000], "damaged audio"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_by_name(tmp_path, name):
    data, reason = BAD_FILES[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AudioError, match=f"{name}.*{reason}"):
        load_audio(tmp_path / name)


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(AudioError, match="nothing.wav does not exist"):
        load_audio(tmp_path / "nothing.wav")
    with pytest.raises(AudioError, match="is a folder"):
        load_audio(tmp_path)


@pytest.mark.parametrize(("data", "reason"), [(b"", "is empty"), (b"x" * 100, "not audio")])
def test_bad_bytes_are_refused(data, reason):
    with pytest.raises(AudioError, match=reason):
        load_audio(data)


def test_ten_minutes_load_and_are_refused_only_on_request():
    data = encoded(sine(8000, 600.0), 8000)
    assert load_audio(data).shape == (600 * 16000,)
    with pytest.raises(AudioError, match=r"lasts 600\.0 s; at most 30 s"):
        load_audio(data, max_seconds=30)


def test_integer_samples_are_refused():
    with pytest.raises(AudioError, match="int16"):
        convert_waveform(np.zeros(100, np.int16), 16000)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_written_audio_reads_back_within_half_a_step(tmp_path, suffix):
    waveform = sine(24000).astype(np.float32)
    write_audio(tmp_path / f"a{suffix}", waveform, 24000)
    samples, sampling_rate = soundfile.read(tmp_path / f"a{suffix}")
    assert sampling_rate == 24000
    assert np.abs(samples - waveform).max() <= 1 / 32768
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_flac_bytes_read_back():
    waveform = sine(16000)
    samples, sampling_rate = soundfile.read(io.BytesIO(waveform_to_flac_bytes(waveform, 16000)))
    assert sampling_rate == 16000 and np.abs(samples - waveform).max() <= 1 / 32768


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.wav"
    write_audio(path, sine(16000), 16000)
    before = path.read_bytes()
    with pytest.raises(AudioError, match="finite"):
        write_audio(path, np.full(100, np.nan), 16000)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(AudioError, match=r"expected \.wav or \.flac"):
        write_audio(tmp_path / "a.mp3", sine(16000), 16000)
