"""Loudness of speech by ITU-R BS.1770, and the gain that makes generated speech as loud as its prompt."""

import numpy as np

try:
    import pyloudnorm
except ImportError:  # Only where loudness is matched.
    pyloudnorm = None

MAX_GAIN = 10.0
"""Highest gain, and the inverse of the lowest: 20 dB. Beyond it, a difference is no matter of level."""
_BLOCK_SECONDS = 0.4
_KNEE = 0.9


def integrated_loudness(waveform: np.ndarray, sampling_rate: int) -> float:
    """Return the gated loudness of a mono waveform in LUFS; -inf for silence.

    Args:
        waveform: floats of shape `(samples,)` in [-1, 1]. Below 0.4 s it is measured as one block.
        sampling_rate (`int`): in Hz.

    Raises:
        ModuleNotFoundError: without the package pyloudnorm.
    """
    if pyloudnorm is None:
        raise ModuleNotFoundError("matching the loudness needs the package pyloudnorm: pip install pyloudnorm")
    waveform = np.asarray(waveform, dtype=np.float64)
    seconds = len(waveform) / sampling_rate
    if seconds == 0 or not np.any(waveform):
        return -np.inf
    meter = pyloudnorm.Meter(sampling_rate, block_size=min(_BLOCK_SECONDS, 0.999 * seconds))
    with np.errstate(divide="ignore"):
        return float(meter.integrated_loudness(waveform))


def matching_gain(reference: np.ndarray, reference_rate: int, rendition: np.ndarray, rendition_rate: int) -> float:
    """Return the factor that makes a rendition as loud as its reference; 1 where either is silent.

    Args:
        reference, rendition: floats of shape `(samples,)`, such as a prompt and its resynthesis.
        reference_rate, rendition_rate: their sampling rates in Hz.
    """
    difference = integrated_loudness(reference, reference_rate) - integrated_loudness(rendition, rendition_rate)
    if not np.isfinite(difference):
        return 1.0
    return float(np.clip(10 ** (difference / 20), 1 / MAX_GAIN, MAX_GAIN))


def apply_gain(waveform, gain: float):
    """Return a waveform times a gain, whose peaks stay below 1.

    Samples up to 0.9 are only scaled; the excess is compressed by a hyperbolic tangent. Every sample depends on
    itself alone, so that pieces of a stream and the whole are the same.

    Args:
        waveform (`torch.Tensor` of shape `(samples,)`): in [-1, 1].
        gain (`float`): factor.
    """
    scaled = waveform * gain
    if gain <= 1:
        return scaled
    excess = (scaled.abs() - _KNEE).clamp(min=0)
    room = 1 - _KNEE
    return scaled.sign() * (scaled.abs().clamp(max=_KNEE) + room * (excess / room).tanh())
