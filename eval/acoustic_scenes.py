"""Signal processing of acoustic suites: noise at a stated ratio, simulated rooms, and switches inside a recording.

All waveforms are mono float arrays of shape `(samples,)` at 16 kHz.
"""

import functools
from dataclasses import dataclass

import numpy as np
from scipy import signal

from ..data.corpus import SAMPLING_RATE

FRAME_SECONDS = 0.02
ACTIVE_RANGE_DB = 30.0
CROSSFADE_SECONDS = 0.01
PEAK = 0.95
SPEECH_LEVEL_DB = -26.0
"""Active level in dB below full scale that all speech is brought to, as ITU-T P.56 recommends."""

_CALIBRATION_ROUNDS = 4


def active_level(speech: np.ndarray) -> float:
    """Root mean square over the active frames: 20 ms frames within 30 dB of the loudest twentieth.

    Pauses therefore do not lower the level, in the spirit of ITU-T P.56.

    Raises `ValueError` for silence.
    """
    length = int(FRAME_SECONDS * SAMPLING_RATE)
    padded = np.pad(np.asarray(speech, np.float64), (0, -len(speech) % length))
    power = np.mean(padded.reshape(-1, length) ** 2, axis=1)
    loud = np.quantile(power, 0.95)
    if loud <= 0:
        raise ValueError(f"Found {len(speech)} samples of silence; expected speech.")
    return float(np.sqrt(power[power >= loud * 10 ** (-ACTIVE_RANGE_DB / 10)].mean()))


def to_speech_level(speech: np.ndarray) -> np.ndarray:
    """Scale speech to the active level `SPEECH_LEVEL_DB`."""
    return np.asarray(speech, np.float64) * (10 ** (SPEECH_LEVEL_DB / 20) / active_level(speech))


def scale_to_snr(noise: np.ndarray, speech: np.ndarray, snr_db: float) -> np.ndarray:
    """Scale noise so that the active level of the speech is `snr_db` dB above the noise's root mean square."""
    level = np.sqrt(np.mean(np.asarray(noise, np.float64) ** 2))
    return noise * (active_level(speech) * 10 ** (-snr_db / 20) / level)


def switch(first: np.ndarray, second: np.ndarray, leave: int, enter: int | None = None) -> np.ndarray:
    """`first` up to the sample `leave`, then `second` from its sample `enter` on (default: the same place).

    Every sample before `leave` is that of `first`. A crossfade of 10 ms begins there, so that a click does not reveal
    the switch.

    Raises:
        ValueError: if a position is outside its waveform.
    """
    enter = leave if enter is None else enter
    if not 0 < leave <= len(first) or not 0 < enter <= len(second):
        raise ValueError(
            f"Found a switch from sample {leave} of {len(first)} to sample {enter} of {len(second)}; "
            "expected places inside both."
        )
    ending = np.array(second[enter:], np.float64)
    length = min(int(CROSSFADE_SECONDS * SAMPLING_RATE), len(first) - leave, len(ending))
    fade = np.linspace(0, 1, length, endpoint=False)
    ending[:length] = ending[:length] * fade + first[leave : leave + length] * (1 - fade)
    return np.concatenate([first[:leave], ending])


def match_power(noise: np.ndarray, reference: np.ndarray, start: int) -> np.ndarray:
    """Scale noise so that from the sample `start` on it is as strong as `reference` is from there on.

    A switch of backgrounds then changes the sound and not the loudness, and both halves of a pair have one ratio.
    """
    return noise * np.sqrt(np.mean(reference[start:] ** 2) / np.mean(noise[start:] ** 2))


def limit_pair(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale both halves by the same factor if either exceeds a peak of 0.95, so that shared samples stay equal."""
    gain = PEAK / max(np.abs(positive).max(), np.abs(negative).max(), PEAK)
    return (positive * gain).astype(np.float32), (negative * gain).astype(np.float32)


@dataclass(frozen=True)
class Room:
    """A shoebox room. `size`: length, width and height in metres. `t60`: reverberation time in seconds."""

    name: str
    size: tuple[float, float, float]
    t60: float


ROOMS = (
    Room("booth", (2.0, 1.8, 2.2), 0.15),
    Room("office", (4.0, 3.2, 2.6), 0.35),
    Room("kitchen", (3.6, 3.0, 2.5), 0.55),
    Room("classroom", (8.0, 6.5, 3.2), 0.7),
    Room("stairwell", (4.5, 4.0, 7.0), 0.9),
    Room("hall", (16.0, 12.0, 7.0), 1.5),
)


def impulse_response(room: Room, seed: int) -> np.ndarray:
    """Impulse response of a room from a random talker to a random microphone, by the image source method.

    The walls' absorption is set so that the reverberation time measured on the response is the room's `t60`.

    Returns:
        float64 array that begins with the direct sound, which has the height 1.
    """
    talker, microphone = _draw_places(room, np.random.default_rng(seed))
    response = _simulate(room, _calibrated_absorption(room), talker, microphone)
    direct = int(np.argmax(np.abs(response)))
    response = response[direct:] / response[direct]
    return response[: int(0.75 * room.t60 * SAMPLING_RATE)]


def measured_t60(response: np.ndarray) -> float:
    """Reverberation time in seconds: twice the fall from -5 to -35 dB of the energy that is left (ISO 3382, T30)."""
    left = 10 * np.log10(np.cumsum(response[::-1] ** 2)[::-1] / np.sum(response**2) + 1e-30)
    first, last = np.argmax(left <= -5), np.argmax(left <= -35)
    slope, _ = np.polyfit(np.arange(first, last) / SAMPLING_RATE, left[first:last], 1)
    return float(-60 / slope)


def reverberate(speech: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Speech in a room, as long as the speech and at its own active level."""
    wet = signal.fftconvolve(speech, response)[: len(speech)]
    return wet * (active_level(speech) / active_level(wet))


def _draw_places(room: Room, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Places of talker and microphone, at least 0.4 m from the walls and, where it fits, 0.8 m from each other."""
    size = np.array(room.size)
    height = min(1.6, room.size[2] / 2)
    while True:
        talker, microphone = (np.append(rng.uniform(0.4, size[:2] - 0.4), height) for _ in range(2))
        if np.linalg.norm(talker - microphone) >= min(0.8, 0.4 * size[:2].min()):
            return talker, microphone


@functools.cache
def _calibrated_absorption(room: Room) -> float:
    """Energy absorption of the walls; Sabine's formula alone misses the time of an image source room by a third."""
    pra = _pyroomacoustics()
    places = _draw_places(room, np.random.default_rng(0))
    target = room.t60
    for _ in range(_CALIBRATION_ROUNDS):
        absorption, _ = pra.inverse_sabine(target, room.size)
        target *= room.t60 / measured_t60(_simulate(room, absorption, *places))
    return pra.inverse_sabine(target, room.size)[0]


def _simulate(room: Room, absorption: float, talker: np.ndarray, microphone: np.ndarray) -> np.ndarray:
    pra = _pyroomacoustics()
    # Images as far away as sound travels in three quarters of the reverberation time: what is left is 45 dB weaker.
    order = int(np.ceil(pra.constants.get("c") * 0.75 * room.t60 / min(room.size)))
    box = pra.ShoeBox(room.size, fs=SAMPLING_RATE, materials=pra.Material(absorption), max_order=order)
    box.add_source(talker)
    box.add_microphone(microphone)
    box.compute_rir()
    return np.asarray(box.rir[0][0], np.float64)


def _pyroomacoustics():
    """The package; `ImportError` that says how to get it."""
    try:
        import pyroomacoustics
    except ImportError as error:
        raise ImportError('Simulated rooms need pyroomacoustics: pip install "tinywave[eval]".') from error
    return pyroomacoustics
