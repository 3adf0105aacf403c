"""Audio of every kind is converted or refused by name."""

import io
import os
import re
import struct
import subprocess
import tracemalloc
import warnings

import av
import imageio_ffmpeg
import numpy as np
import pytest
import soundfile

from tinywave.cli.shipped import AUDIO
from tinywave.data.audio_io import (
    AudioError,
    AudioWarning,
    audio_seconds,
    convert_waveform,
    load_audio,
    waveform_to_flac_bytes,
    write_audio,
)


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
    left, right = sine(16000), sine(16000, frequency=880.0)
    waveform = load_audio(encoded(np.stack([left, right], axis=1), 16000, subtype="FLOAT"))
    np.testing.assert_allclose(waveform, (left + right) / 2, atol=1e-6)


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
    "cut.flac": (encoded(sine(16000, 2.0), 16000, "FLAC")[:100], "not audio that can be read"),
    "int16_scale.wav": (encoded(9800 * sine(16000), 16000, subtype="FLOAT"), "peak of .*; expected .* 32768"),
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


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.uint8])
def test_integer_samples_are_scaled_by_the_range_of_their_type(kind):
    limits = np.iinfo(kind)
    middle = (limits.max + limits.min + 1) / 2
    waveform = convert_waveform((middle + sine(16000) * (limits.max - middle)).astype(kind), 16000)
    np.testing.assert_allclose(waveform, sine(16000), atol=2 / (limits.max - middle))


@pytest.mark.parametrize(
    ("samples", "rate", "reason"),
    [
        (np.zeros(100, bool), 16000, "type bool"),
        (np.zeros(100, np.int64), 16000, "type int64"),
        (np.zeros(100, complex), 16000, "type complex128"),
        (np.array(["a"]), 16000, "type <U1"),
        (np.zeros((2, 2, 2)), 16000, r"shape \(2, 2, 2\)"),
        (np.zeros((2, 16000)), 16000, r"16,000 channels; expected 1 to 64; .*\(samples, channels\)"),
        (np.zeros((16000, 0)), 16000, "0 channels"),
        (np.zeros(100), 1, "sampling rate of 1 Hz"),
        (np.zeros(100), float("nan"), "sampling rate of nan Hz"),
        (np.zeros(100), "16000", "sampling rate of '16000' Hz"),
        (np.zeros(100), 10**9, "sampling rate of 1000000000 Hz"),
        (32768 * sine(16000), 16000, "peak of 16,384; .* 16-bit integers by 32768"),
    ],
)
def test_arrays_that_are_no_audio_are_refused(samples, rate, reason):
    with pytest.raises(AudioError, match=f"the waveform .*{reason}"):
        convert_waveform(samples, rate)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("samples", "report"),
    [
        (np.zeros(16000), "is silent"),
        (np.full((16000, 2), 1e-6), "is silent"),
        (np.sign(sine(16000)), "is clipped"),
        (1.5 * np.sign(sine(16000)), "is clipped"),
    ],
)
def test_silence_and_clipping_are_reported(samples, report):
    with pytest.raises(AudioWarning, match=f"the waveform {report}"):
        convert_waveform(samples, 16000)


@pytest.mark.parametrize("samples", [np.full(16000, 0.3), np.full((16000, 2), (0.3, -0.1))])
def test_a_constant_offset_is_reported_as_silence(samples):
    with pytest.warns(AudioWarning, match="is silent: its samples are constant"):
        convert_waveform(samples, 16000)


def test_opposite_phases_with_a_common_offset_are_not_cancelled():
    waveform = 0.5 * speech()
    with pytest.warns(AudioWarning, match="channels of opposite phase"):
        mixed = convert_waveform(np.stack([waveform + 0.1, 0.1 - waveform], 1), 16000)
    np.testing.assert_allclose(mixed, waveform + 0.1, atol=1e-6)


def test_mutated_headers_are_read_or_refused_without_noise_on_stderr(tmp_path, capfd):
    random = np.random.default_rng(0)
    kinds = [
        ("WAV", "PCM_16"),
        ("FLAC", "PCM_16"),
        ("AIFF", "PCM_16"),
        ("CAF", "PCM_16"),
        ("AU", "PCM_16"),
        ("W64", "PCM_16"),
    ]
    for audio_format, subtype in kinds:
        data = encoded(sine(16000, 0.1), 16000, audio_format, subtype)
        for number in range(60):
            changed = bytearray(data)
            for place in random.integers(4, 100, 3):
                changed[place] = random.integers(256)
            path = tmp_path / f"{number}.{audio_format.lower()}"
            path.write_bytes(changed)
            for source in (bytes(changed), path):
                try:
                    with warnings.catch_warnings(action="ignore", category=AudioWarning):
                        load_audio(source, max_seconds=60)
                except AudioError:
                    pass
    assert not capfd.readouterr().err


def speech():
    return load_audio(min((AUDIO / "librivox").glob("*.flac")))


@pytest.mark.parametrize("gain", [-1.0, -0.7, -0.3])
def test_speech_of_opposite_phases_is_not_cancelled(gain):
    waveform = speech()
    with pytest.warns(AudioWarning, match="channels of opposite phase.* channel 1 of 2 is used"):
        mixed = convert_waveform(np.stack([waveform, gain * waveform], 1), 16000)
    np.testing.assert_array_equal(mixed, waveform)


def test_speech_whose_phase_turns_in_the_middle_is_not_cancelled():
    waveform = speech()
    turned = waveform.copy()
    turned[len(waveform) // 2 :] *= -1
    with pytest.warns(AudioWarning, match="opposite phase"):
        np.testing.assert_array_equal(convert_waveform(np.stack([waveform, turned], 1), 16000), waveform)


@pytest.mark.filterwarnings("error")
def test_one_speaker_in_the_middle_of_six_channels_is_no_opposite_phase():
    samples = np.zeros((len(speech()), 6), np.float32)
    samples[:, 2] = speech()
    np.testing.assert_allclose(convert_waveform(samples, 16000), speech() / 6, atol=1e-6)
    samples[:, 3] = -speech()
    with pytest.warns(AudioWarning, match="channels of opposite phase.* channel 3 of 6 is used"):
        np.testing.assert_array_equal(convert_waveform(samples, 16000), speech())


@pytest.mark.parametrize("kind", ["float16", ">f4", "longdouble"])
def test_floats_of_any_width_are_resampled(kind):
    waveform = convert_waveform(sine(48000).astype(kind), 48000)
    np.testing.assert_allclose(waveform[800:-800], sine(16000)[800:-800], atol=2e-3)


@pytest.mark.filterwarnings("error")
def test_speakers_on_two_sides_are_both_kept():
    waveform = speech()
    left, right = waveform.copy(), waveform.copy()
    left[len(waveform) // 2 :] = 0
    right[: len(waveform) // 2] = 0
    np.testing.assert_allclose(convert_waveform(np.stack([left, right], 1), 16000), waveform / 2, atol=1e-6)


# Files whose length is not what their header says

CODINGS = {
    "wav": ("WAV", "PCM_16"), "aiff": ("AIFF", "PCM_16"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III"),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("coding", CODINGS)
def test_joined_files_are_read_to_the_end(coding):
    data, waveform = encoded(speech(), 16000, *CODINGS[coding]), speech()
    joined = load_audio(data + data)
    # MP3 adds an encoder's delay to the second part, Vorbis rounds a stream up to whole blocks.
    assert 2 * len(waveform) <= len(joined) <= 2 * len(waveform) + 3000
    second, size = joined[len(waveform) :], 2**18
    correlation = np.fft.irfft(np.fft.rfft(second, size) * np.conj(np.fft.rfft(waveform, size)), size)
    assert correlation.max() > 0.9 * float(waveform @ waveform)


@pytest.mark.parametrize("coding", CODINGS)
def test_files_that_end_early_are_read_and_reported_with_both_lengths(coding):
    data, waveform = encoded(speech(), 16000, *CODINGS[coding]), speech()
    with pytest.warns(AudioWarning, match=r"the audio data ends early: \d+\.\d\d s of the \d+\.\d\d s") as issued:
        found = load_audio(data[: len(data) * 3 // 4])
    read, promised = map(float, re.search(r"(\S+) s of the (\S+) s", str(issued[0].message)).groups())
    assert read == pytest.approx(len(found) / 16000, abs=0.02) and 0.3 * len(waveform) < len(found) < len(waveform)
    assert read + 0.1 < promised <= len(waveform) / 16000 + 0.1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        ("WAV", "GSM610"), ("WAV", "G721_32"), ("WAV", "NMS_ADPCM_16"), ("WAV", "NMS_ADPCM_32"), ("WAV", "IMA_ADPCM"),
        ("WAV", "MS_ADPCM"), ("WAV", "ULAW"), ("AU", "G723_24"), ("AU", "G723_40"), ("AIFF", "GSM610"),
        ("W64", "GSM610"), ("CAF", "ALAC_16"), ("RF64", "PCM_16"), ("VOC", "PCM_16"), ("NIST", "PCM_16"),
    ],
)  # fmt: skip
def test_codecs_that_cannot_seek_and_rare_containers_are_read(kind, subtype):
    waveform = speech()
    found = load_audio(encoded(waveform, 16000, kind, subtype))
    assert len(waveform) <= len(found) <= len(waveform) + 1024
    assert np.corrcoef(found[: len(waveform)], waveform)[0, 1] > 0.9


def write_av(path, waveform, codec, **options):
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray((waveform * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = 16000
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=16000, frame_size=stream.frame_size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))


def write_with_ffmpeg(path, codec, sampling_rate, num_channels):
    """Encode speech with the ffmpeg program, which has codecs that PyAV lacks."""
    source = min((AUDIO / "librivox").glob("*.flac"))
    options = ["-ar", str(sampling_rate), "-ac", str(num_channels), "-c:a", codec, "-strict", "-2"]
    program = imageio_ffmpeg.get_ffmpeg_exe()
    subprocess.run([program, "-v", "error", "-y", "-i", source, *options, path], check=True)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("suffix", "codec"), [("m4a", "aac"), ("mp4", "aac"), ("mka", "libopus"), ("webm", "libopus")]
)
def test_the_content_decides_and_not_the_name(suffix, codec, tmp_path):
    write_av(tmp_path / f"a.{suffix}", speech(), codec)
    for name in ("a.wav", "a.mp3", "a", "a.txt"):
        renamed = (tmp_path / f"a.{suffix}").rename(tmp_path / name)
        assert len(load_audio(renamed)) == pytest.approx(len(speech()), abs=2100)
        renamed.rename(tmp_path / f"a.{suffix}")


@pytest.mark.filterwarnings("error")
def test_a_variable_bit_rate_without_a_length_is_read_to_the_end(tmp_path):
    quiet = np.concatenate([speech(), np.zeros(20 * 16000, np.float32), speech()])
    write_av(tmp_path / "a.mp3", quiet, "libmp3lame", write_xing="0")
    assert len(load_audio(tmp_path / "a.mp3")) == pytest.approx(len(quiet), abs=2400)


def test_a_flac_file_written_to_a_pipe_is_read():
    data = bytearray(encoded(speech(), 16000, "FLAC"))
    data[21] &= 0xF0  # The number of samples is the last 36 bits before the checksum of STREAMINFO.
    data[22:26] = bytes(4)
    np.testing.assert_array_equal(load_audio(bytes(data)), load_audio(encoded(speech(), 16000, "FLAC")))


def likeness(found, expected):
    """Highest normalized correlation over all delays."""
    size = 2**19
    spectrum = np.fft.rfft(found, size) * np.conj(np.fft.rfft(expected, size))
    return np.fft.irfft(spectrum, size).max() / np.sqrt((found @ found) * (expected @ expected))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("suffix", "links"),
    [
        ("ogg", [("libvorbis", 16000, 1), ("libopus", 48000, 2), ("flac", 44100, 1)]),
        ("flac", [("flac", 16000, 1), ("flac", 44100, 2), ("flac", 48000, 6)]),
        ("mp3", [("libmp3lame", 16000, 1), ("libmp3lame", 44100, 2), ("libmp3lame", 48000, 1)]),
        ("wav", [("pcm_s16le", 16000, 1), ("pcm_f32le", 44100, 2), ("pcm_mulaw", 8000, 1)]),
    ],
)
def test_links_of_other_codecs_rates_and_channels_are_joined(suffix, links, tmp_path):
    data = b""
    for link in links:
        write_with_ffmpeg(tmp_path / f"a.{suffix}", *link)
        data += (tmp_path / f"a.{suffix}").read_bytes()
    found = load_audio(data)
    assert len(found) == pytest.approx(3 * len(speech()), abs=4800)
    for third in np.array_split(found, 3):
        assert likeness(third, speech()) > 0.9
    with pytest.raises(AudioError, match="lasts more than"):
        load_audio(data, max_seconds=1.5 * len(speech()) / 16000)


def test_a_thousand_joined_files_are_read():
    assert len(load_audio(1500 * encoded(sine(16000, 0.01), 16000))) == 1500 * 160


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("suffix", "codec", "sampling_rate", "num_channels"),
    [
        ("m4a", "aac", 48000, 8), ("opus", "libopus", 48000, 8), ("caf", "flac", 48000, 8), ("mkv", "aac", 48000, 6),
        ("w64", "pcm_f32le", 96000, 2), ("voc", "pcm_s16le", 16000, 1), ("avi", "pcm_s16le", 8000, 1),
        ("avi", "adpcm_ms", 16000, 1), ("wma", "wmav2", 16000, 1),
        ("mka", "libmp3lame", 8000, 1), ("dts", "dca", 44100, 2), ("thd", "truehd", 48000, 2),
    ],
)  # fmt: skip
def test_what_ffmpeg_writes_is_read_whole_and_without_warnings(suffix, codec, sampling_rate, num_channels, tmp_path):
    write_with_ffmpeg(tmp_path / f"a.{suffix}", codec, sampling_rate, num_channels)
    found = load_audio(tmp_path / f"a.{suffix}")
    assert len(found) == pytest.approx(len(speech()), abs=2500) and likeness(found, speech()) > 0.9


def test_damaged_mp3_within_wav_prints_nothing(tmp_path, capfd):
    write_with_ffmpeg(tmp_path / "a.wav", "libmp3lame", 16000, 1)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[5000:5600] = bytes(600)
    with warnings.catch_warnings(action="ignore", category=AudioWarning):
        assert len(load_audio(bytes(data))) > 16000
    assert audio_seconds(bytes(data)) > 1 and not capfd.readouterr().err


def test_an_ogg_file_that_ends_at_the_end_of_a_page_is_reported():
    data = encoded(speech(), 16000, "OGG", "VORBIS")
    with pytest.warns(AudioWarning, match=r"is damaged \(the last page of its stream is missing\); \d\.\d\d s can be"):
        assert 0 < len(load_audio(data[: data.rindex(b"OggS")])) < len(speech())


def wav_header(num_channels=1, sampling_rate=16000, num_bytes=100):
    sizes = (16, 1, num_channels, sampling_rate, sampling_rate * 2 % 2**32, 2 * num_channels, 16)
    header = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 36 + num_bytes, b"WAVE", b"fmt ", *sizes)
    return header + struct.pack("<4sI", b"data", num_bytes) + bytes(100)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (wav_header(sampling_rate=1), "sampling rate of 1 Hz"),
        (wav_header(sampling_rate=2**31 - 1), "sampling rate of 2147483647 Hz"),
        (wav_header(num_channels=1000), "1,000 channels"),
        (wav_header(num_bytes=0)[:44], "no audio samples|not audio"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n", "not audio"),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", "not audio"),
        (b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=audio 9 RTP/AVP 0\n", "not audio"),
        (bytes(range(256)) * 40, "not audio"),
        (b"\xff\xfb" + bytes(1000), "not audio"),
    ],
)
def test_absurd_headers_and_lists_of_other_files_are_refused(data, reason, tmp_path):
    (tmp_path / "bad.wav").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(AudioError, match=f"bad.wav .*({reason})"):
        load_audio(tmp_path / "bad.wav")
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_a_limit_holds_where_the_header_promises_less(tmp_path):
    write_av(tmp_path / "a.mp3", np.zeros(40 * 16000, np.float32), "libmp3lame", write_xing="0")
    with pytest.raises(AudioError, match="lasts more than 30 s; at most 30 s"):
        load_audio(tmp_path / "a.mp3", max_seconds=30)


def test_names_of_any_bytes_and_sources_of_other_types_are_described(tmp_path):
    path = os.fsencode(tmp_path) + b"/latin\xe9.wav"
    with open(path, "wb") as file:
        file.write(b"nothing")
    with pytest.raises(AudioError, match=r"latin\\xe9.wav is not audio"):
        load_audio(os.fsdecode(path))
    write_audio(os.fsdecode(path), sine(16000), 16000)
    assert len(load_audio(os.fsdecode(path))) == 8000
    refused = {"a\0b": "does not exist", "n" * 300: "cannot be read", io.StringIO("x"): "StringIO", 3: "found int"}
    for source, reason in refused.items():
        with pytest.raises(AudioError, match=reason):
            load_audio(source)


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
