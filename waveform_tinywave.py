"""Waveforms of any source as mono float32 at one sampling rate, or an error that names what is wrong with them.

Every waveform that enters the package, from a file, a data set, a microphone or an array, is converted here.
"""

import warnings
from collections.abc import Iterator

import numpy as np

try:
    import soxr
except ImportError:  # Only waveforms at another sampling rate need it.
    soxr = None

MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 1_000, 768_000
MAX_CHANNELS = 64
MAX_PEAK = 4.0
"""Highest peak that is taken for audio in [-1, 1] which is too loud (+12 dB), not for samples in another unit."""
SILENCE_PEAK = 1e-4
"""Peak below which a waveform is reported as silent: -80 dB of full scale."""
CLIPPED_SHARE = 0.005
"""Share of samples at full scale above which clipping is reported."""
_INTEGER_TYPES = ("uint8", "int16", "int32")
# Channels of opposite phase cancel where the level of their sum is below this share of the loudest one's, -2 dB.
# Beside silent channels, as in 5.1 sound with one speaker in the middle, the sum keeps the level of the loudest.
_MIN_SUM_LEVEL = 0.8
_MIN_CHANNEL_LEVEL = 0.4
_MIN_ACTIVE_LEVEL = 0.01
_PART_SAMPLES = 2**21


class AudioError(ValueError):
    """Audio that cannot be used; the message names it, what was found and what is expected."""


class AudioWarning(UserWarning):
    """Audio that is used although something is wrong with it: cut short, clipped, silent, or of opposite phases."""


def report_audio(message: str) -> None:
    """Issue an [`AudioWarning`]."""
    warnings.warn(message, AudioWarning, stacklevel=3)


def check_sampling_rate(sampling_rate: float, name: str) -> None:
    """Raise [`AudioError`] for a sampling rate that no recording of speech has."""
    is_number = isinstance(sampling_rate, (int, float, np.integer, np.floating)) and not isinstance(
        sampling_rate, bool
    )
    if not is_number or not MIN_SAMPLING_RATE <= sampling_rate <= MAX_SAMPLING_RATE:
        raise AudioError(
            f"{name} has a sampling rate of {sampling_rate!r} Hz; expected {MIN_SAMPLING_RATE:,} to "
            f"{MAX_SAMPLING_RATE:,} Hz"
        )


def check_num_channels(num_channels: int, name: str) -> None:
    """Raise [`AudioError`] for a number of channels that no recording of speech has."""
    if not 1 <= num_channels <= MAX_CHANNELS:
        raise AudioError(
            f"{name} has {num_channels:,} channels; expected 1 to {MAX_CHANNELS}; the shape of an array is "
            "(samples, channels)"
        )


def convert_waveform(
    samples: np.ndarray, source_rate: float, sampling_rate: int = 16000, name: str = "the waveform"
) -> np.ndarray:
    """Convert samples to mono float32 in [-1, 1] at one sampling rate.

    Args:
        samples: shape `(samples,)` or `(samples, channels)`; floats in [-1, 1], or integers (`uint8`, `int16`,
            `int32`), which are scaled by the range of their type.
        source_rate, sampling_rate: of the input and of the result, in Hz.
        name (`str`): what errors and warnings call the audio.

    Returns:
        `np.ndarray` of shape `(samples,)`. Samples beyond [-1, 1], such as overshoots of resampling, are clipped.
        Audio with a peak between 1 and 4 is clipped too and never scaled down: its level would then depend on its
        highest peak.

    Raises:
        AudioError: for audio that is empty, has NaN or infinite samples, a peak above 4 (samples in the scale of
            integers), an impossible sampling rate or shape, or another type.

    Warns:
        AudioWarning: for silent audio (also a constant offset), for more than 0.5 % of samples at full scale, and for
            channels of opposite phase, see [`mix_channels`].
    """
    check_sampling_rate(source_rate, name)
    check_sampling_rate(sampling_rate, name)
    samples = _to_float(np.asarray(samples), name)
    if samples.ndim == 2:
        check_num_channels(samples.shape[1], name)
    if len(samples) == 0:
        raise AudioError(f"{name} holds no audio samples; expected speech")
    # Extremes are NaN or infinite where a sample is, and take no memory.
    peak = float(max(-samples.min(), samples.max()))
    if not np.isfinite(peak):
        bad = int((~np.isfinite(samples)).sum())
        raise AudioError(f"{name} holds {bad} NaN or infinite samples; expected finite samples in [-1, 1]")
    if peak > MAX_PEAK:
        raise AudioError(
            f"{name} has a peak of {peak:,.6g}; expected samples in [-1, 1]. Divide samples in the scale of 16-bit "
            "integers by 32768"
        )
    _report_levels(samples, peak, name)
    mono = mix_channels(samples, round(source_rate), name) if samples.ndim == 2 else samples
    if source_rate != sampling_rate:
        mono = _resample(mono, source_rate, sampling_rate, name)
    return np.clip(mono, -1.0, 1.0).astype(np.float32, copy=False)


def mix_channels(samples: np.ndarray, sampling_rate: int, name: str = "the waveform") -> np.ndarray:
    """Mix channels to one without cancelling them.

    The mix is the mean of the channels. Where channels of opposite phase cancel in it, the loudest channel is used
    instead, and a warning is issued: a quarter of a second counts as cancelled when the level of the sum is more than
    2 dB below that of its loudest channel.

    Args:
        samples: shape `(samples, channels)`, floats.
        sampling_rate (`int`): in Hz.
        name (`str`): what warnings call the audio.

    Returns:
        `np.ndarray` of shape `(samples,)`.
    """
    num_channels = samples.shape[1]
    if num_channels == 1:
        return samples[:, 0]
    mean = samples.mean(axis=1)
    block = max(1, sampling_rate // 4)
    levels = _block_levels(samples, block)
    energy = (levels**2).sum(axis=0)
    loudest_channel = int((energy >= 0.99 * energy.max()).argmax())  # the first of about equal ones
    loudest = levels.max(axis=1)
    is_active = loudest > max(SILENCE_PEAK, _MIN_ACTIVE_LEVEL * float(loudest.max()))
    is_lost = {
        number: is_active & (_block_levels(mix[:, None], block)[:, 0] < share * loudest)
        for number, mix, share in (
            (None, mean, _MIN_SUM_LEVEL / num_channels),
            (loudest_channel, samples[:, loudest_channel], _MIN_CHANNEL_LEVEL),
        )
    }
    if not is_lost[None].any():
        return mean
    if is_lost[loudest_channel].sum() >= is_lost[None].sum():
        report_audio(f"{name} loses parts of its channels when they are mixed: their phases are opposite in places")
        return mean
    report_audio(
        f"{name} has channels of opposite phase, which cancel when they are mixed; channel {loudest_channel + 1} of "
        f"{num_channels} is used"
    )
    return samples[:, loudest_channel]


def _to_float(samples: np.ndarray, name: str) -> np.ndarray:
    if samples.ndim not in (1, 2) or not (samples.dtype.kind == "f" or samples.dtype.name in _INTEGER_TYPES):
        raise AudioError(
            f"{name} has type {samples.dtype} and shape {samples.shape}; expected floats, or integers of 8, 16 or 32 "
            "bits, of shape (samples,) or (samples, channels)"
        )
    if samples.dtype.kind == "f":
        # Of other widths and orders of bytes soxr knows nothing.
        return samples if samples.dtype in (np.float32, np.float64) else samples.astype(np.float32)
    information = np.iinfo(samples.dtype)
    middle = 128 if information.min == 0 else 0
    floats = samples.astype(np.float32)
    floats -= middle
    floats /= (information.max + 1) - middle
    return floats


def _report_levels(samples: np.ndarray, peak: float, name: str) -> None:
    if peak < SILENCE_PEAK:
        report_audio(f"{name} is silent: its peak is {peak:.1e} of full scale")
    elif float(np.ptp(samples, axis=0).max()) < 2 * SILENCE_PEAK:
        report_audio(f"{name} is silent: its samples are constant, at most {peak:.1e} of full scale")
    clipped = sum(np.count_nonzero(np.abs(part) >= 0.9999) for part in _parts(samples)) / samples.size
    if clipped > CLIPPED_SHARE:
        report_audio(f"{name} is clipped: {clipped:.1%} of its samples are at full scale or beyond")


def _block_levels(samples: np.ndarray, block: int) -> np.ndarray:
    """Root mean square around the mean of every block of every channel, `(blocks, channels)`.

    Without the mean, so that a constant offset of a sound card does not count as sound.
    """
    return np.concatenate([_levels_of_part(part, block) for part in _parts(samples, block)])


def _levels_of_part(samples: np.ndarray, block: int) -> np.ndarray:
    starts = np.arange(0, len(samples), block)
    lengths = np.diff(np.append(starts, len(samples)))[:, None]
    means = np.add.reduceat(samples, starts, axis=0, dtype=np.float64) / lengths
    power = np.add.reduceat(np.square(samples, dtype=np.float64), starts, axis=0) / lengths
    return np.sqrt(np.maximum(power - np.square(means), 0.0))


def _parts(samples: np.ndarray, block: int = 1) -> Iterator[np.ndarray]:
    """Samples in parts of whole blocks, so that intermediate results take little memory."""
    length = max(1, _PART_SAMPLES // (block * samples[:1].size)) * block
    return (samples[start : start + length] for start in range(0, len(samples), length))


def _resample(mono: np.ndarray, source_rate: float, sampling_rate: int, name: str) -> np.ndarray:
    if soxr is None:
        raise AudioError(
            f"{name} has {source_rate:g} Hz, and {sampling_rate} Hz are needed; resample it, or install soxr"
        )
    resampled = soxr.resample(mono, source_rate, sampling_rate)
    if len(resampled) == 0:
        raise AudioError(f"{name} holds {len(mono)} samples at {source_rate:g} Hz, too few to resample")
    return resampled
