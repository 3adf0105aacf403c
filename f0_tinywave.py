"""Waveform -> fundamental frequency (F0) at 200 Hz: what pitch codes are made of.

Codes mean something only with the estimator that they were learnt from, so the small one, swift-f0, comes with every
model; its package is needed when the first waveform is read, not before. `data/f0_extraction.py` adds the one of the
published system.
"""

from collections.abc import Callable

import numpy as np

SAMPLING_RATE = 16_000
HOP_LENGTH = 80
F0_RATE = SAMPLING_RATE / HOP_LENGTH
F0_RANGE = (50.0, 1100.0)
"""Lowest and highest F0 of voiced speech, Hz."""

MIN_SECONDS = 0.08
_VOICED_CONFIDENCE = 0.5

# waveform (samples,) at 16 kHz -> F0 in Hz (frames,) and voiced (frames,), at 200 Hz
F0Extractor = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class SwiftF0Extractor:
    """swift-f0: a small network on the spectrogram, one frame every 16 ms, here brought to 200 Hz.

    Raises `ModuleNotFoundError` when swift-f0 is not installed.
    """

    def __init__(self):
        try:
            from swift_f0 import SwiftF0
        except ImportError as error:
            raise ModuleNotFoundError(
                "the F0 extractor 'swift-f0' needs the package swift-f0; run: pip install swift-f0"
            ) from error
        self._detector = SwiftF0(threads=1, spin=False)

    def __call__(self, waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return F0 (Hz) and voicing at 200 Hz; `ValueError` for audio that is short, not mono or not finite."""
        waveform = checked_waveform(waveform)
        found = self._detector.detect(waveform, SAMPLING_RATE, *F0_RANGE)
        voiced = found.confidence >= _VOICED_CONFIDENCE
        times = np.arange(num_f0_frames(len(waveform))) / F0_RATE
        nearest = np.searchsorted((found.timestamps[1:] + found.timestamps[:-1]) / 2, times)
        if not voiced.any():
            return np.zeros(len(times), np.float32), np.zeros(len(times), bool)
        f0 = np.interp(times, found.timestamps[voiced], found.pitch_hz[voiced])
        return f0.astype(np.float32), voiced[nearest]


class DeferredF0Extractor:
    """The extractor of a name, made when the first waveform comes: a codec that only speaks needs no package for it.

    Args:
        name (`str`): as in `PitchEncoderConfig.f0_extractor`.
    """

    def __init__(self, name: str):
        self.name = name
        self._extractor: F0Extractor | None = None

    def __call__(self, waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what the extractor returns; `ModuleNotFoundError` without its package, `ValueError` for another."""
        if self.name != "swift-f0":
            raise ValueError(
                f"the pitch codes were learnt from the F0 extractor {self.name!r}, which is not part of this folder; "
                f"give f0_extractor=tinywave.load_f0_extractor({self.name!r})"
            )
        if self._extractor is None:
            self._extractor = SwiftF0Extractor()
        return self._extractor(waveform)


def num_f0_frames(num_samples: int) -> int:
    """Return the F0 frames of a waveform of `num_samples` samples at 16 kHz."""
    return num_samples // HOP_LENGTH + 1


def checked_waveform(waveform: np.ndarray) -> np.ndarray:
    """Return a float32 waveform `(samples,)`; `ValueError` for audio that is short, not mono or not finite."""
    waveform = np.asarray(waveform, dtype=np.float32)
    if waveform.ndim != 1:
        raise ValueError(f"the waveform has shape {waveform.shape}; expected mono audio, one dimension")
    if len(waveform) < MIN_SECONDS * SAMPLING_RATE:
        raise ValueError(
            f"the waveform lasts {1000 * len(waveform) / SAMPLING_RATE:.0f} ms; pitch needs at least "
            f"{1000 * MIN_SECONDS:.0f} ms of audio at {SAMPLING_RATE} Hz"
        )
    if not np.isfinite(waveform).all():
        raise ValueError("the waveform holds NaN or infinite samples; expected finite samples in [-1, 1]")
    return waveform
