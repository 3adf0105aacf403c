"""Intelligibility after units: audio -> units -> waveform -> Whisper base -> word error rate.

The word error rate of the original audio stands beside it: the recogniser's own errors are in both.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jiwer
import numpy as np
import soxr
import torch
from tqdm import tqdm
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from ..data.audio_io import load_audio, waveform_to_flac_bytes
from ..data.kokoro_voice import TEST_VOICES, KokoroVoice
from ..data.whisper_weights import whisper_ct2_folder
from ..speech_encoder_tinywave import SpeechEncoder
from ..tokenization_tinywave import deduplicate
from ..vocoder_tinywave import NeuralDecoder, Vocoder
from .statistics import bootstrap_sums

ENCODER_SAMPLING_RATE = 16_000
TRANSCRIPTS_FILE = "transcripts.json"

_normalize_text = EnglishTextNormalizer({})


@dataclass(frozen=True)
class SpokenText:
    """A recording with its transcript.

    Attributes:
        id: name of the recording.
        waveform: float32 mono at 16 kHz.
        text: what is said.
    """

    id: str
    waveform: np.ndarray
    text: str


@dataclass(frozen=True)
class WordErrorRate:
    """Word error rate of a set of utterances.

    Attributes:
        value: edits / reference words, a share (1.0 = as many errors as words).
        ci95: percentile bootstrap over utterances.
        n: utterances.
        num_words: reference words.
    """

    value: float
    ci95: list[float]
    n: int
    num_words: int


@dataclass(frozen=True)
class ResynthesisResult:
    """Word error rates of one set, and per utterance what was heard.

    Attributes:
        original: of the recordings themselves, the reference line.
        resynthesis: of the recordings after units and vocoder.
        rows: id, text, heard_original, heard_resynthesis of each utterance.
    """

    original: WordErrorRate
    resynthesis: WordErrorRate
    rows: list[dict]

    def to_dict(self) -> dict:
        """JSON form without the rows."""
        return {"original": asdict(self.original), "resynthesis": asdict(self.resynthesis)}


class WhisperTranscriber:
    """Whisper base (MIT) through faster-whisper: beam search of 5, English, no context of earlier text."""

    def __init__(self, folder: str | Path | None = None, num_threads: int = 1):
        from faster_whisper import WhisperModel

        folder = folder or whisper_ct2_folder()
        self._model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=num_threads)

    def __call__(self, waveform: np.ndarray, sampling_rate: int) -> str:
        """Waveform `(samples,)` at any rate -> text."""
        if sampling_rate != ENCODER_SAMPLING_RATE:
            waveform = soxr.resample(waveform, sampling_rate, ENCODER_SAMPLING_RATE)
        segments, _ = self._model.transcribe(
            np.ascontiguousarray(waveform, dtype=np.float32),
            language="en",
            beam_size=5,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in segments)


def normalize_words(text: str) -> str:
    """Whisper's English normalisation: lower case, no punctuation, digits for numbers, contractions spelled out."""
    # The normaliser leaves one full stop of an ellipsis behind.
    return " ".join(word for word in _normalize_text(text).split() if any(map(str.isalnum, word)))


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> WordErrorRate:
    """Word error rate over all utterances together (total edits / total words), after `normalize_words`.

    Raises:
        ValueError: different numbers of references and hypotheses, or a reference without words.
    """
    if len(references) != len(hypotheses) or not references:
        raise ValueError(f"Found {len(references)} references for {len(hypotheses)} hypotheses; expected one each.")
    references, hypotheses = ([normalize_words(text) for text in texts] for texts in (references, hypotheses))
    if not all(references):
        raise ValueError("Found a reference without words; expected the transcript of every utterance.")
    scores = [jiwer.process_words(*pair) for pair in zip(references, hypotheses, strict=True)]
    edits = [score.substitutions + score.deletions + score.insertions for score in scores]
    words = [len(reference.split()) for reference in references]
    resampled_edits, resampled_words = bootstrap_sums(np.array([edits, words]))
    interval = np.percentile(resampled_edits / resampled_words, [2.5, 97.5])
    return WordErrorRate(sum(edits) / sum(words), [float(edge) for edge in interval], len(words), sum(words))


def resynthesize(
    waveform: np.ndarray, encoder: SpeechEncoder, vocoder: Vocoder, decoder: NeuralDecoder | None = None
) -> np.ndarray:
    """Waveform at 16 kHz -> units with their true durations -> waveform at `vocoder.sampling_rate`."""
    raw_units = encoder.encode([torch.from_numpy(np.asarray(waveform, dtype=np.float32))])[0]
    units, durations = deduplicate(raw_units.tolist())
    return vocoder.units_to_waveform(torch.from_numpy(units), torch.from_numpy(durations), decoder).numpy()


def read_recordings(folder: str | Path) -> list[SpokenText]:
    """Read a folder of audio files with a `transcripts.json` (file name -> text), in the order of that file.

    Raises:
        FileNotFoundError: no `transcripts.json`.
        AudioError: a file that it names is missing or cannot be read.
    """
    folder = Path(folder)
    transcripts = json.loads((folder / TRANSCRIPTS_FILE).read_text(encoding="utf-8"))
    return [
        SpokenText(name, load_audio(folder / name, ENCODER_SAMPLING_RATE), text) for name, text in transcripts.items()
    ]


def write_recordings(recordings: Iterable[SpokenText], folder: str | Path) -> None:
    """Write recordings as `<id>.flac` at 16 kHz with a `transcripts.json`, the inverse of `read_recordings`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    transcripts = {}
    for recording in recordings:
        name = f"{Path(recording.id).stem}.flac"
        (folder / name).write_bytes(waveform_to_flac_bytes(recording.waveform, ENCODER_SAMPLING_RATE))
        transcripts[name] = recording.text
    (folder / TRANSCRIPTS_FILE).write_text(json.dumps(transcripts, indent=2) + "\n", encoding="utf-8")


def speak_in_unseen_voices(sentences: Sequence[str], kokoro: KokoroVoice) -> list[SpokenText]:
    """Speak sentences in the Kokoro test voices in turn; no model is trained on these voices."""
    recordings = []
    for index, sentence in enumerate(sentences):
        voice = TEST_VOICES[index % len(TEST_VOICES)]
        utterance = kokoro.synthesize(sentence, voice=voice)
        waveform = soxr.resample(utterance.waveform, utterance.sampling_rate, ENCODER_SAMPLING_RATE)
        recordings.append(SpokenText(f"{voice}_{index:03d}", waveform, sentence))
    return recordings


def evaluate_resynthesis(
    recordings: Iterable[SpokenText],
    encoder: SpeechEncoder,
    vocoder: Vocoder,
    decoder: NeuralDecoder | None = None,
    transcribe: Callable[[np.ndarray, int], str] | None = None,
) -> ResynthesisResult:
    """Word error rate of recordings before and after units.

    Args:
        recordings: the set to measure.
        decoder: neural decoder; without it the Griffin-Lim fallback is measured.
        transcribe (default `WhisperTranscriber()`): waveform, sampling rate -> text.
    """
    transcribe = transcribe or WhisperTranscriber()
    rows = []
    for recording in tqdm(list(recordings), desc="resynthesis", unit="clip"):
        rebuilt = resynthesize(recording.waveform, encoder, vocoder, decoder)
        rows.append(
            {
                "id": recording.id,
                "text": recording.text,
                "heard_original": transcribe(recording.waveform, ENCODER_SAMPLING_RATE),
                "heard_resynthesis": transcribe(rebuilt, vocoder.sampling_rate),
            }
        )
    texts = [row["text"] for row in rows]
    original, resynthesis = (
        word_error_rate(texts, [row[name] for row in rows]) for name in ("heard_original", "heard_resynthesis")
    )
    return ResynthesisResult(original, resynthesis, rows)
