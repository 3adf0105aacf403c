"""F0 of known tones and of real speech, by two estimators, and of a corpus: nothing lost and nothing done twice."""

import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tinywave.data import f0_extraction
from tinywave.data.audio_io import load_audio
from tinywave.data.corpus import TextItem, iterate_corpus, prepare_corpus
from tinywave.data.f0_extraction import FcpeExtractor, load_f0, load_f0_extractor, num_f0_frames, prepare_f0
from tinywave.data.fcpe_pitch import load_fcpe, log_mel_spectrogram


def tone(f0):
    """Eight harmonics that follow an F0 given for every sample at 16 kHz."""
    phase = 2 * np.pi * np.cumsum(f0) / 16000
    return (0.1 * sum(np.sin(number * phase) / number for number in range(1, 9))).astype(np.float32)


@pytest.fixture(scope="module")
def swift_f0():
    return load_f0_extractor()


def test_a_glide_is_followed(swift_f0):
    truth = np.linspace(120, 330, 32000)
    f0, voiced = swift_f0(tone(truth))
    assert f0.shape == voiced.shape == (401,) and voiced.mean() > 0.9
    np.testing.assert_allclose(f0[10:390], truth[::80][10:390], rtol=0.01)


@pytest.mark.parametrize("num_samples", [1280, 1281, 1359, 1360, 16000, 146_160])
def test_the_frames_of_a_waveform(swift_f0, num_samples):
    f0, voiced = swift_f0(tone(np.full(num_samples, 150.0)))
    assert len(f0) == len(voiced) == num_f0_frames(num_samples) == num_samples // 80 + 1


def test_a_pause_is_unvoiced_and_interpolated(swift_f0):
    f0, voiced = swift_f0(np.concatenate([tone(np.full(8000, 150.0)), np.zeros(8000), tone(np.full(8000, 250.0))]))
    pause = slice(110, 190)
    assert not voiced[pause].any() and voiced[10:90].all() and voiced[210:290].all()
    steps = np.diff(f0[pause])
    np.testing.assert_allclose(steps, steps.mean(), atol=1e-3)
    assert 0.7 < steps.mean() < 1.1  # 100 Hz in about 100 frames
    silent_ends = swift_f0(np.concatenate([np.zeros(4000), tone(np.full(8000, 200.0)), np.zeros(4000)]))[0]
    assert np.ptp(silent_ends[:45]) == np.ptp(silent_ends[-45:]) == 0


def test_silence_and_whisper_have_no_f0(swift_f0):
    whisper = np.random.default_rng(0).normal(0, 0.05, 16000).astype(np.float32)
    for waveform in (np.zeros(16000, np.float32), whisper):
        f0, voiced = swift_f0(waveform)
        assert not voiced.any() and not f0.any()


@pytest.mark.parametrize(
    ("waveform", "reason"),
    [
        (np.zeros(800), "lasts 50 ms; pitch needs at least 80 ms"),
        (np.full(16000, np.nan), "NaN or infinite"),
        (np.zeros((2, 16000)), r"shape \(2, 16000\); expected mono"),
    ],
)
def test_bad_waveforms_are_refused(swift_f0, waveform, reason):
    with pytest.raises(ValueError, match=reason):
        swift_f0(waveform)


def test_an_unknown_extractor_is_refused():
    with pytest.raises(ValueError, match="unknown F0 extractor 'yin'; expected one of swift-f0, fcpe"):
        load_f0_extractor("yin")


@pytest.mark.parametrize(("name", "module"), [("fcpe", "torchfcpe"), ("swift-f0", "swift_f0")])
def test_a_missing_package_says_what_to_install(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=f"extractor '{name}' needs .*pip install"):
        load_f0_extractor(name)


# FCPE: a small network with the published names, and the same arithmetic written down from them.

CHANNELS, MEL_BINS, CLASSES = 8, 16, 360


def fcpe_state():
    torch.manual_seed(0)
    shapes = {
        "input_stack.0.weight": (CHANNELS, MEL_BINS, 3),
        "input_stack.0.bias": (CHANNELS,),
        "input_stack.1.weight": (CHANNELS,),
        "input_stack.1.bias": (CHANNELS,),
        "input_stack.3.weight": (CHANNELS, CHANNELS, 3),
        "input_stack.3.bias": (CHANNELS,),
        "norm.weight": (CHANNELS,),
        "norm.bias": (CHANNELS,),
        "output_proj.bias": (CLASSES,),
        "output_proj.weight_g": (CLASSES, 1),
        "output_proj.weight_v": (CLASSES, CHANNELS),
    }
    for layer in range(2):
        root = f"net.encoder_layers.{layer}"
        shapes |= {f"{root}.norm.weight": (CHANNELS,), f"{root}.norm.bias": (CHANNELS,)}
        shapes |= {f"{root}.conformer.net.0.{kind}": (CHANNELS,) for kind in ("weight", "bias")}
        shapes |= {f"{root}.conformer.net.2.weight": (4 * CHANNELS, CHANNELS, 1)}
        shapes |= {f"{root}.conformer.net.2.bias": (4 * CHANNELS,)}
        shapes |= {f"{root}.conformer.net.4.conv.weight": (2 * CHANNELS, 1, 31)}
        shapes |= {f"{root}.conformer.net.4.conv.bias": (2 * CHANNELS,)}
        shapes |= {f"{root}.conformer.net.6.weight": (CHANNELS, 2 * CHANNELS, 1)}
        shapes |= {f"{root}.conformer.net.6.bias": (CHANNELS,)}
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    state["output_proj.weight_g"] *= 3.0
    state["output_proj.bias"] -= 23.0  # about half of the frames are then below the threshold of voicing
    cents = 1200 * torch.log2(torch.tensor([32.7, 1975.5]) / 10)
    return state | {
        "cent_table": torch.linspace(*cents.tolist(), CLASSES),
        "gaussian_blurred_cent_mask": torch.tensor(9152.0),
    }


def fcpe_by_hand(state, waveform):
    """F0 at 100 Hz of a waveform, 0 where unvoiced."""
    padded = F.pad(waveform[None], (432, 432), mode="reflect")[0].numpy()
    window = np.hanning(1025)[:-1]
    frames = [np.abs(np.fft.rfft(padded[i : i + 1024] * window)) for i in range(0, len(padded) - 1023, 160)]
    frames = frames[: len(waveform) // 160 + 1]
    frames += frames[-1:] * (len(waveform) // 160 + 1 - len(frames))
    magnitude = np.sqrt(np.square(frames) + 1e-9)
    mel = np.log(np.maximum(magnitude @ slaney_filters(), 1e-5))
    hidden = F.conv1d(torch.from_numpy(mel).float().T[None], *pair(state, "input_stack.0"), padding=1)
    hidden = F.leaky_relu(F.group_norm(hidden, 4, *pair(state, "input_stack.1")))
    hidden = F.conv1d(hidden, *pair(state, "input_stack.3"), padding=1)[0].T
    for layer in range(2):
        root = f"net.encoder_layers.{layer}.conformer.net"
        update = F.layer_norm(hidden, (CHANNELS,), *pair(state, f"{root}.0")).T[None]
        update = F.glu(F.conv1d(update, *pair(state, f"{root}.2")), dim=1)
        update = F.silu(F.conv1d(update, *pair(state, f"{root}.4.conv"), padding=15, groups=2 * CHANNELS))
        hidden = hidden + F.conv1d(update, *pair(state, f"{root}.6"))[0].T
    hidden = F.layer_norm(hidden, (CHANNELS,), *pair(state, "norm"))
    direction = F.normalize(state["output_proj.weight_v"], dim=1)
    confidence = torch.sigmoid(hidden @ (direction * state["output_proj.weight_g"]).T + state["output_proj.bias"])
    f0 = []
    for frame in confidence:
        best = int(frame.argmax())
        near = np.clip(np.arange(best - 4, best + 5), 0, CLASSES - 1)  # at the edge a class counts several times
        cents = float((state["cent_table"][near] * frame[near]).sum() / frame[near].sum())
        f0.append(10 * 2 ** (cents / 1200) if frame[best] > 0.05 else 0.0)
    return np.array(f0)


def pair(state, name):
    return state[f"{name}.weight"], state[f"{name}.bias"]


def slaney_filters():
    """Triangles of equal area at 16 kHz: linear below 1 kHz, 27 steps to a factor of 6.4 above."""

    def to_hz(mel):
        return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)))

    top = 15 + np.log(8000 / 1000) * 27 / np.log(6.4)
    edges = to_hz(np.linspace(0, top, MEL_BINS + 2))
    bins = np.linspace(0, 8000, 513)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(np.minimum(rising, falling), 0) * 2 / (edges[2:] - edges[:-2])


@pytest.fixture(scope="module")
def fcpe_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("fcpe") / "fcpe.pt"
    torch.save({"model": fcpe_state(), "config_dict": {"model": {"conv_only": True}}}, path)
    return path


def test_fcpe_is_the_published_network(fcpe_file):
    """F0 at 100 Hz, unvoiced below 50 Hz and interpolated there, then every frame twice, as published."""
    waveform = tone(np.linspace(150, 300, 8000)) * np.sin(np.linspace(0, 20, 8000)).astype(np.float32) ** 4
    slow = fcpe_by_hand(fcpe_state(), torch.from_numpy(waveform))
    known = slow >= 50
    assert 0.3 < known.mean() < 0.7 and len(slow) == 51
    times = np.arange(51)
    slow = np.minimum(np.where(known, slow, np.interp(times, times[known], slow[known])), 1100)
    nearest = [index * 51 // 101 for index in range(101)]
    f0, voiced = FcpeExtractor(fcpe_file)(waveform)
    np.testing.assert_allclose(f0, slow[nearest], rtol=1e-4)
    assert voiced.tolist() == known[nearest].tolist()


def test_fcpe_reads_long_audio_in_chunks(fcpe_file, monkeypatch):
    extractor = FcpeExtractor(fcpe_file)
    extractor._network.output.bias.data += 5.0  # every frame is voiced: interpolation would reach across the cuts
    waveform = tone(np.linspace(150, 300, 40_000))
    edges = [0, 13_280, 26_560, 40_000]
    pieces = [extractor(waveform[start:end])[0] for start, end in zip(edges[:-1], edges[1:], strict=True)]
    monkeypatch.setattr(f0_extraction, "MAX_CHUNK_SECONDS", 1.0)
    f0, voiced = extractor(waveform)
    assert voiced.all() and len(f0) == 501
    assert f0.tolist() == [*pieces[0][:166], *pieces[1][:166], *pieces[2]]


def test_fcpe_without_a_voiced_frame(fcpe_file, tmp_path):
    state = fcpe_state()
    state["output_proj.bias"] -= 100
    torch.save({"model": state}, tmp_path / "quiet.pt")
    f0, voiced = FcpeExtractor(tmp_path / "quiet.pt")(tone(np.full(8000, 200.0)))
    assert len(f0) == 101 and not f0.any() and not voiced.any()


def test_the_shortest_audio_has_mel_frames():
    assert log_mel_spectrogram(torch.ones(1280), MEL_BINS).shape == (9, MEL_BINS)
    assert log_mel_spectrogram(torch.ones(300), MEL_BINS).shape == (2, MEL_BINS)


def test_other_weights_are_refused(tmp_path):
    state = fcpe_state()
    del state["norm.bias"]
    torch.save({"model": state}, tmp_path / "a")
    with pytest.raises(ValueError, match="not those of FCPE 0.0.4"):
        load_fcpe(tmp_path / "a")
    (tmp_path / "b").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="cannot be read as FCPE weights"):
        load_fcpe(tmp_path / "b")


# A corpus


def item(number, split="train", style="base"):
    sentence = ("The dog found a key.", "She sold the boat.", "We ran home.", "He sees a tree.")[number]
    return TextItem(f"row-{number}", split, "story", (sentence,), "hibari", style, number, "none", "written here")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    items = [item(0), item(1, style="sad"), item(2, split="validation"), item(3)]
    return prepare_corpus(items, tmp_path_factory.mktemp("corpus"), num_processes=1)


def files_of(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_f0_of_a_corpus_is_that_of_its_audio(corpus, swift_f0, tmp_path):
    prepare_f0([corpus], tmp_path, rows_per_shard=3)
    contours = load_f0(tmp_path)
    assert [contour.id for contour in contours] == ["row-0", "row-1", "row-2", "row-3"]
    assert [contour.style for contour in contours] == ["base", "sad", "base", "base"]
    for contour, row in zip(contours, iterate_corpus(corpus), strict=True):
        f0, voiced = swift_f0(load_audio(row["audio"]["bytes"]))
        assert contour.f0.tolist() == f0.tolist() and contour.voiced.tolist() == voiced.tolist()
        assert 0.2 < voiced.mean() < 0.9
    assert contours[1].f0[contours[1].voiced].std() < contours[0].f0[contours[0].voiced].std()
    assert [contour.id for contour in load_f0(tmp_path, "validation")] == ["row-2"]
    with pytest.raises(ValueError, match="found no test utterance"):
        load_f0(tmp_path, "test")


def test_a_second_run_keeps_finished_shards_and_makes_the_others(corpus, tmp_path):
    def shards_made(corpora=(corpus,), **options):
        before = files_of(tmp_path)
        prepare_f0(corpora, tmp_path, rows_per_shard=2, **options)
        return [name[6:11] for name, time in sorted(files_of(tmp_path).items()) if before.get(name) != time]

    assert shards_made() == ["00000", "00001"]
    assert shards_made() == []
    (tmp_path / "shard-00001.parquet").write_bytes(b"cut off")
    assert shards_made() == ["00001"]
    assert shards_made(corpora=(corpus, corpus)) == ["00002", "00003"]
    assert shards_made(hours={"validation": 1.0}) == ["00000"]
    assert [contour.id for contour in load_f0(tmp_path)] == ["row-2"]


def test_hours_are_a_limit_and_the_choice_follows_the_seed(corpus, tmp_path):
    chosen = set()
    for seed in range(4):
        prepare_f0([corpus], tmp_path / str(seed), hours={"train": 1e-6}, seed=seed)
        (contour,) = load_f0(tmp_path / str(seed))
        chosen.add(contour.id)
    assert len(chosen) > 1
    with pytest.raises(ValueError, match="no speech of the split 'test'"):
        prepare_f0([corpus], tmp_path / "none", hours={"test": 1.0})
