"""Backgrounds of ten domains, synthesised from a seed: two draws of a domain are two recordings of it.

They stand in for the noise recordings of SALMon (FSD50K, arXiv 2010.00475), which cannot be shipped. A draw chooses
what distinguishes recordings of one place (rate, pitch, colour, tempo) before it makes the sound.
"""

import functools
from collections.abc import Callable
from random import Random

import numpy as np
import soxr
from scipy import signal

from ..data.corpus import SAMPLING_RATE
from ..data.hibari_voice import STYLES, HibariVoice
from ..data.story_language import sample_story

LICENCE = "CC0-1.0 (synthesised by TinyWave; the crowd is mixed from the hibari voice, Apache-2.0)"
_CROWD_VOICES = 6


def make_background(domain: str, seed: int, num_samples: int) -> np.ndarray:
    """One recording of a domain.

    Args:
        domain (`str`): a key of `DOMAINS`.
        seed (`int`): names the recording; the same seed gives the same samples.
        num_samples (`int`): length at 16 kHz.

    Returns:
        float64 waveform of shape `(num_samples,)` without offset and of root mean square 1.

    Raises `ValueError` for an unknown domain.
    """
    if domain not in DOMAINS:
        raise ValueError(f"Unknown background {domain!r}; expected one of {tuple(DOMAINS)}.")
    sound = DOMAINS[domain](np.random.default_rng([seed, list(DOMAINS).index(domain)]), num_samples)
    sound = sound - sound.mean()
    return sound / np.sqrt(np.mean(sound**2))


def _time(num_samples: int) -> np.ndarray:
    return np.arange(num_samples) / SAMPLING_RATE


def _band_noise(rng: np.random.Generator, num_samples: int, low: float, high: float) -> np.ndarray:
    """Gaussian noise between two frequencies in Hz, of root mean square about 1."""
    sections = signal.butter(2, (low, high), "bandpass", fs=SAMPLING_RATE, output="sos")
    noise = signal.sosfilt(sections, rng.standard_normal(num_samples + SAMPLING_RATE // 4))[-num_samples:]
    return noise / np.sqrt(np.mean(noise**2))


def _slow_noise(rng: np.random.Generator, num_samples: int, period: float) -> np.ndarray:
    """A smooth random curve from 0 to 1 that turns about every `period` seconds."""
    num_points = int(num_samples / SAMPLING_RATE / period) + 4
    curve = np.interp(_time(num_samples) / period, np.arange(num_points), rng.uniform(size=num_points))
    width = max(int(period * SAMPLING_RATE / 2), 1)
    return signal.fftconvolve(np.pad(curve, width, mode="edge"), np.ones(width) / width, "same")[width:-width]


def _place(sound: np.ndarray, events: list[tuple[float, np.ndarray]]) -> np.ndarray:
    """Add sounds at their times in seconds; what is beyond the end is cut."""
    for start, event in events:
        first = int(start * SAMPLING_RATE)
        piece = event[: max(len(sound) - first, 0)]
        sound[first : first + len(piece)] += piece
    return sound


def _event_times(rng: np.random.Generator, num_samples: int, interval: float, jitter: float) -> np.ndarray:
    """Times in seconds of events about every `interval` seconds, each off by a part `jitter` of it."""
    times = rng.uniform(0, interval) + interval * np.arange(int(num_samples / SAMPLING_RATE / interval) + 1)
    return np.abs(times + interval * jitter * rng.uniform(-1, 1, len(times)))


def _decay(seconds: float, length: float | None = None) -> np.ndarray:
    """An envelope from 1 that falls by 60 dB in `seconds`."""
    return 10 ** (-3 * _time(int((length or seconds) * SAMPLING_RATE)) / seconds)


def _rain(rng, num_samples):
    drops = np.zeros(num_samples)
    rate = rng.uniform(60, 250)
    num_drops = rng.poisson(rate * num_samples / SAMPLING_RATE)
    drops[rng.integers(0, num_samples, num_drops)] = rng.exponential(1.0, num_drops)
    pitch = rng.uniform(1500, 4500)
    click = np.sin(2 * np.pi * pitch * _time(240)) * _decay(0.015)
    hiss = _band_noise(rng, num_samples, rng.uniform(300, 900), rng.uniform(5000, 7500))
    return rng.uniform(0.5, 1.0) * hiss + signal.fftconvolve(drops, click)[:num_samples]


def _wind(rng, num_samples):
    gusts = 0.2 + _slow_noise(rng, num_samples, rng.uniform(0.6, 1.2)) ** 2
    howl_low = rng.uniform(250, 700)
    howl = _band_noise(rng, num_samples, howl_low, howl_low * 1.15) * gusts**2
    return _band_noise(rng, num_samples, 40, rng.uniform(200, 500)) * gusts + rng.uniform(0.2, 0.8) * howl


def _waves(rng, num_samples):
    period = rng.uniform(2.5, 4.5)
    phase = rng.uniform(0, 2 * np.pi)
    swell = (0.5 + 0.5 * np.sin(2 * np.pi * _time(num_samples) / period + phase)) ** 2 + 0.1
    foam = _band_noise(rng, num_samples, rng.uniform(800, 1500), rng.uniform(4000, 7000))
    return _band_noise(rng, num_samples, 60, rng.uniform(400, 900)) * swell + 0.7 * foam * swell**2


def _engine(rng, num_samples):
    speed = rng.uniform(28, 75) * (1 + rng.uniform(0.02, 0.12) * (_slow_noise(rng, num_samples, 1.0) - 0.5))
    phase = 2 * np.pi * np.cumsum(speed) / SAMPLING_RATE
    slope = rng.uniform(0.7, 1.3)
    hum = sum(
        harmonic**-slope * rng.uniform(0.5, 1) * np.sin(harmonic * phase + rng.uniform(0, 2 * np.pi))
        for harmonic in range(1, 25)
    )
    return hum + rng.uniform(0.1, 0.4) * _band_noise(rng, num_samples, 100, rng.uniform(1000, 3000))


def _alarm(rng, num_samples):
    low, high = rng.uniform(500, 900), rng.uniform(1000, 1800)
    period, duty = rng.uniform(0.25, 0.9), rng.uniform(0.4, 0.7)
    cycle = (_time(num_samples) / period + rng.uniform()) % 1
    glides = rng.uniform() < 0.5
    frequency = low + (high - low) * (cycle if glides else np.round(cycle))
    tone = np.sin(2 * np.pi * np.cumsum(frequency) / SAMPLING_RATE)
    gate = np.ones(num_samples) if glides else (cycle % 0.5 < duty / 2).astype(float)
    gate = signal.fftconvolve(gate, np.ones(160) / 160, "same")
    return (tone + 0.3 * np.tanh(3 * tone)) * gate


def _music(rng, num_samples):
    root, beat = 110 * 2 ** (rng.integers(0, 13) / 12), rng.uniform(0.25, 0.55)
    scale = np.array([0, 2, 4, 5, 7, 9, 11]) if rng.uniform() < 0.5 else np.array([0, 2, 3, 5, 7, 8, 10])
    brightness, ring = rng.uniform(1.0, 2.2), rng.uniform(0.5, 1.6)
    events = []
    for index in range(int(num_samples / SAMPLING_RATE / beat) + 1):
        degree = int(rng.integers(0, 7))
        chord = (degree, degree + 2, degree + 4) if index % 4 == 0 else (degree + 7,)
        for step in chord:
            note = root * 2 ** ((scale[step % 7] + 12 * (step // 7)) / 12)
            events.append((index * beat, _plucked_note(note, brightness, ring)))
    return _place(np.zeros(num_samples), events)


def _plucked_note(frequency: float, brightness: float, ring: float) -> np.ndarray:
    envelope = _decay(2 * ring, ring)
    time = _time(len(envelope))
    partials = range(1, int(min(8, SAMPLING_RATE / 2 / frequency)) + 1)
    tone = sum(k**-brightness * np.sin(2 * np.pi * k * frequency * time) * envelope**k for k in partials)
    return tone * np.minimum(time / 0.005, 1)


def _footsteps(rng, num_samples):
    low, high = rng.uniform(80, 160), rng.uniform(900, 3500)
    events = []
    for start in _event_times(rng, num_samples, rng.uniform(0.38, 0.7), 0.06):
        for delay, strength in ((0.0, 1.0), (rng.uniform(0.06, 0.1), 0.5)):
            envelope = _decay(rng.uniform(0.08, 0.14))
            events.append((start + delay, strength * _band_noise(rng, len(envelope), low, high) * envelope))
    return _place(0.02 * rng.standard_normal(num_samples), events)


def _clock(rng, num_samples):
    pitches = rng.uniform(1800, 3200), rng.uniform(1200, 1800)
    interval, damping = rng.choice([0.25, 1 / 3, 0.5]), rng.uniform(0.02, 0.05)
    events = []
    for index, start in enumerate(_event_times(rng, num_samples, interval, 0.0)):
        envelope = _decay(damping)
        tick = np.sin(2 * np.pi * pitches[index % 2] * _time(len(envelope))) * envelope
        events.append((start, tick + 0.4 * rng.standard_normal(len(envelope)) * envelope**2))
    return _place(0.01 * rng.standard_normal(num_samples), events)


def _birds(rng, num_samples):
    base, rate, species = rng.uniform(2200, 4200), rng.uniform(0.25, 0.6), rng.uniform(-0.4, 0.4)
    events = []
    for start in _event_times(rng, num_samples, rate, 0.3):
        for chirp in range(int(rng.integers(1, 5))):
            time = _time(int(rng.uniform(0.05, 0.11) * SAMPLING_RATE))
            sweep = base * rng.uniform(0.9, 1.1) * (1 + species * time / time[-1])
            tone = np.sin(2 * np.pi * np.cumsum(sweep) / SAMPLING_RATE + 3 * np.sin(2 * np.pi * 30 * time))
            events.append((start + 0.13 * chirp, tone * np.hanning(len(time)) * rng.uniform(0.4, 1)))
    return _place(0.02 * _band_noise(rng, num_samples, 200, 6000), events)


@functools.cache
def _hibari() -> HibariVoice:
    return HibariVoice()


def _crowd(rng, num_samples):
    """Speakers of other pitch and vocal tract, each saying held-out sentences from a random place on."""
    room = np.zeros(num_samples)
    text = Random(int(rng.integers(2**31)))
    for _ in range(_CROWD_VOICES):
        style, warp = str(rng.choice(list(STYLES))), rng.uniform(0.85, 1.2)
        pieces: list[np.ndarray] = []
        skip = int(rng.uniform(0, 2) * SAMPLING_RATE)
        while sum(map(len, pieces)) < num_samples + skip:
            sentence = text.choice(sample_story(text, "test").sentences)
            speech = _hibari().synthesize(sentence, style=style, seed=text.randrange(2**31), warp=warp)
            pieces.append(soxr.resample(speech.waveform, speech.sampling_rate, SAMPLING_RATE))
        room += np.concatenate(pieces)[skip : skip + num_samples]
    return room


DOMAINS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "rain": _rain,
    "wind": _wind,
    "waves": _waves,
    "engine": _engine,
    "crowd": _crowd,
    "alarm": _alarm,
    "music": _music,
    "footsteps": _footsteps,
    "clock": _clock,
    "birds": _birds,
}
"""Domain -> function from a generator and a number of samples to a sound."""
