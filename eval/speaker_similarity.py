"""Whether two recordings are of one voice: the cosine of their speaker vectors.

The network is the GE2E speaker encoder (Wan et al. 2018, arXiv 1710.10467) in the PyPI package resemblyzer
(Apache-2.0), which carries its weights. Installing the package with its dependencies brings librosa, and a compiler
for webrtcvad; here only the weights are read. The package itself first cuts long silences out by webrtcvad. This is
left out, so that speech with long pauses has slightly other vectors here.

Shapes: B batch, S samples, T mel frames (100 Hz), M mel channels, D size of a speaker vector.
"""

import hashlib
import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers.audio_utils import mel_filter_bank

from ..data.installed_weights import find_installed_weights

SAMPLING_RATE = 16_000
NUM_MEL_CHANNELS = 40
PARTIAL_FRAMES = 160
"""Mel frames that the network hears at once: 1.6 s. A shorter recording is followed by silence."""

PACKAGE, VERSION, WEIGHTS_FILE = "resemblyzer", "0.1.4", "pretrained.pt"
WEIGHTS_SHA256 = "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e"
_HOP, _WINDOW = 160, 400
_PARTIAL_STEP = 77  # mel frames; 1.3 partial utterances begin in a second
_MIN_COVERAGE = 0.75  # of the last partial utterance by the recording
_MIN_LEVEL = 10 ** (-30 / 20)  # -30 dB of full scale, root mean square
_UNUSED = ("similarity_weight", "similarity_bias")  # of the training loss


class SpeakerEncoder(nn.Module):
    """Waveform -> speaker vector.

    Args:
        state: the published `model_state` (names of resemblyzer 0.1.4); its shapes give the sizes.

    Raises `ValueError` when the tensors are not those of the speaker encoder.
    """

    def __init__(self, state: dict[str, torch.Tensor]):
        super().__init__()
        state = {name: tensor for name, tensor in state.items() if name not in _UNUSED}
        try:
            size, hidden_size = state["linear.weight"].shape
            num_layers = sum(name.startswith("lstm.weight_hh_l") for name in state)
            self.lstm = nn.LSTM(NUM_MEL_CHANNELS, hidden_size, num_layers, batch_first=True)
            self.linear = nn.Linear(hidden_size, size)
            self.load_state_dict(state)
        except (KeyError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"the weights are not those of the speaker encoder of {PACKAGE} {VERSION} ({error}); reinstall it"
            ) from error
        filters = mel_filter_bank(
            1 + _WINDOW // 2,
            NUM_MEL_CHANNELS,
            0.0,
            SAMPLING_RATE / 2,
            SAMPLING_RATE,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("mel_filters", torch.from_numpy(filters).float(), persistent=False)

    @torch.inference_mode()
    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """Mel spectrograms `(B, T, M)` -> speaker vectors `(B, D)` of length 1, without negative numbers."""
        _, (hidden, _) = self.lstm(mel)
        return F.normalize(self.linear(hidden[-1]).relu(), dim=1)

    @torch.inference_mode()
    def speaker_vector(self, waveform: np.ndarray) -> torch.Tensor:
        """Waveform `(S,)` at 16 kHz -> `(D,)`: the mean over overlapping 1.6 s of speech, of length 1.

        Speech below -30 dB of full scale is raised to it first. Under 1.6 s of speech make an unreliable vector.

        Raises `ValueError` for an empty or silent waveform and for NaN samples.
        """
        samples = torch.from_numpy(np.array(waveform, dtype=np.float32))
        level = samples.square().mean().sqrt() if len(samples) else torch.zeros(())
        if not torch.isfinite(level) or level == 0:
            raise ValueError(f"found {len(samples)} samples of level {float(level)}; expected speech")
        samples = samples * max(1.0, _MIN_LEVEL / float(level))
        starts = _partial_starts(len(samples))
        num_samples = (starts[-1] + PARTIAL_FRAMES) * _HOP
        mel = self._mel_spectrogram(F.pad(samples, (0, max(0, num_samples - len(samples)))))
        return F.normalize(self(torch.stack([mel[start : start + PARTIAL_FRAMES] for start in starts])).mean(0), dim=0)

    def _mel_spectrogram(self, samples: torch.Tensor) -> torch.Tensor:
        """Samples `(S,)` -> power in mel bands `(1 + S // 160, M)`, linear."""
        window = torch.hann_window(_WINDOW, device=samples.device)
        spectrum = torch.stft(samples, _WINDOW, _HOP, window=window, pad_mode="constant", return_complex=True)
        return spectrum.abs().square().T @ self.mel_filters


def _partial_starts(num_samples: int) -> list[int]:
    """First mel frame of every partial utterance; a last one of which speech covers under 75 % is left out."""
    num_frames = -(-(num_samples + 1) // _HOP)
    starts = list(range(0, max(1, num_frames - PARTIAL_FRAMES + _PARTIAL_STEP + 1), _PARTIAL_STEP))
    covered = num_samples / _HOP - starts[-1]
    return starts[:-1] if len(starts) > 1 and covered < _MIN_COVERAGE * PARTIAL_FRAMES else starts


def speaker_similarity(encoder: SpeakerEncoder, first: np.ndarray, second: np.ndarray) -> float:
    """Cosine of the speaker vectors of two waveforms at 16 kHz: 0 to 1, higher for one voice than for two.

    Raises `ValueError` as [`~SpeakerEncoder.speaker_vector`] does.
    """
    return float(encoder.speaker_vector(first) @ encoder.speaker_vector(second))


def load_speaker_encoder(path: str | os.PathLike | None = None) -> SpeakerEncoder:
    """Return the speaker encoder with its published weights.

    Args:
        path (*optional*): the weight file, or the wheel of resemblyzer 0.1.4. Default: the installed package. The
            sha256 of what lies in the wheel or the package must be that of version 0.1.4.

    Raises `ModuleNotFoundError` when resemblyzer is not installed, `ValueError` for other weights.
    """
    if path is None:
        path = find_installed_weights(PACKAGE, VERSION, WEIGHTS_FILE, WEIGHTS_SHA256, "the speaker similarity")
    try:
        content = _read_wheel(Path(path)) if Path(path).suffix == ".whl" else Path(path).read_bytes()
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)["model_state"]
    except (OSError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as weights of {PACKAGE} ({error}); reinstall {PACKAGE}") from error
    return SpeakerEncoder(state).eval()


def _read_wheel(path: Path) -> bytes:
    content = zipfile.ZipFile(path).read(f"{PACKAGE}/{WEIGHTS_FILE}")
    found = hashlib.sha256(content).hexdigest()
    if found != WEIGHTS_SHA256:
        raise ValueError(f"{path} holds weights of sha256 {found}; expected {WEIGHTS_SHA256} of {PACKAGE} {VERSION}")
    return content
