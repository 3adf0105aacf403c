"""Intelligibility after units: audio -> units -> waveform -> Whisper base -> word error rate.

The word error rate of the original audio is reported next to it, because both include the errors of the recognizer.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jiwer
import numpy as np
import soxr
from tqdm import tqdm
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from ..codec_tinywave import SpeechCodec
from ..data.whisper_weights import whisper_ct2_folder
from .statistics import ratio_interval

ENCODER_SAMPLING_RATE = 16_000

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
        ci95: percentile bootstrap over utterances; None for one.
        n: utterances.
        num_words: reference words.
    """

    value: float
    ci95: list[float] | None
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
    return WordErrorRate(sum(edits) / sum(words), ratio_interval(edits, words), len(words), sum(words))


def evaluate_resynthesis(
    recordings: Iterable[SpokenText],
    codec: SpeechCodec,
    transcribe: Callable[[np.ndarray, int], str] | None = None,
) -> ResynthesisResult:
    """Word error rate of recordings before and after units.

    Args:
        recordings: the set to measure.
        codec: encodes and speaks; units keep their true durations.
        transcribe (default `WhisperTranscriber()`): waveform, sampling rate -> text.
    """
    transcribe = transcribe or WhisperTranscriber()
    rows = []
    for recording in tqdm(list(recordings), desc="resynthesis", unit="clip"):
        rebuilt = codec.decode(codec.encode([recording.waveform])[0]).numpy()
        rows.append(
            {
                "id": recording.id,
                "text": recording.text,
                "heard_original": transcribe(recording.waveform, ENCODER_SAMPLING_RATE),
                "heard_resynthesis": transcribe(rebuilt, codec.output_sampling_rate),
            }
        )
    texts = [row["text"] for row in rows]
    original, resynthesis = (
        word_error_rate(texts, [row[name] for row in rows]) for name in ("heard_original", "heard_resynthesis")
    )
    return ResynthesisResult(original, resynthesis, rows)
