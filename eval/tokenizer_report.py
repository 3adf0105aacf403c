"""Bit rate and phonetic information of the tokens of one or more speech codecs, on the same recordings.

These measures need no language model and take minutes, so that codecs can be compared before any training:

- bits per second of every stream, as the frames come, without repeats, and after their entropy (the bit rate of the
  Zero Resource Speech Challenge, Dunbar et al. 2019, arXiv 1904.11469: tokens per second times entropy);
- the number of units in use, and the mean run length of a unit in frames;
- the information of units about phones: PNMI, phone purity and unit purity (Hsu et al. 2021, arXiv 2106.07447);
- the word error rate after resynthesis from units, next to that of the recordings.

    record = report_tokenizers({"own": codec, "whisper": other}, read_corpus_utterances(folder, "test"))
    print(tokenizers_to_markdown(record))
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.stats import entropy

from ..codec_tinywave import SpeechCodec
from ..configuration_tinywave import SPEECH_STREAMS, STREAM_FIELDS
from ..tokenization_tinywave import deduplicate
from .codec_material import HeldOutUtterance, describe_set
from .codec_measures import is_measured, measured_ratio, not_measured
from .codec_quality import timed_phones_to_frames, unit_purity
from .codec_table import format_number, format_share
from .resynthesis import SpokenText, evaluate_resynthesis
from .statistics import NUM_RESAMPLES

REPEATING_STREAMS = tuple(stream.name for stream in SPEECH_STREAMS if stream.merge_repeats)
"""Streams that are de-duplicated in the input of a language model."""
PURITY_MEASURES = ("pnmi", "phone_purity", "unit_purity")
CONVENTION = {
    "bits": "tokens per second times log2 of their number, or times the entropy of a token's share, base 2",
    "entropy": "of the set as a whole, so without interval; in a small set it is too low. Tokens carry no durations",
    "phones": "label of the middle of every frame, silence included",
    "interval": "95 %, percentile bootstrap over utterances",
    "num_resamples": NUM_RESAMPLES,
}


def measure_stream(
    tokens: Sequence[Sequence[int]], seconds: Sequence[float], num_codes: int, *, repeats: bool = True, seed: int = 0
) -> dict:
    """Compute the rate and the code usage of one token stream.

    Args:
        tokens: tokens of each utterance, one per frame.
        seconds: duration of each utterance, in seconds.
        num_codes (`int`): size of the codebook.
        repeats (`bool`, defaults to True): whether each run of equal tokens is merged into one in the input of a
            language model.
        seed (`int`, defaults to 0): seed of the bootstrap over utterances.

    Returns:
        `dict`:

        - "num_codes", and "active_codes" {"value": share of the codes that occur, "num_active", "n"};
        - "tokens_per_second" and "run_length" (mean frames per run of a token), {"value", "ci95", "n"};
        - "bits_per_second": {"frames": frames per second x log2 num_codes, "tokens": the same for the tokens in the
          input of a language model, "frame_entropy" and "token_entropy": rate x entropy}, without interval.

    Raises:
        ValueError: if there are no tokens, or a token is out of range.
    """
    merged = [deduplicate(row)[0] if repeats else np.asarray(row) for row in tokens]
    counts = np.array([list(map(len, tokens)), list(map(len, merged))])
    frames = np.concatenate([np.asarray(row, dtype=np.int64) for row in tokens]) if len(tokens) else np.zeros(0, int)
    if not len(frames) or frames.min() < 0 or frames.max() >= num_codes:
        raise ValueError(f"Found {len(frames)} tokens; expected some, all from 0 to {num_codes - 1}.")
    rates = counts.sum(axis=1) / sum(seconds)
    entropies = [_entropy(frames, num_codes), _entropy(np.concatenate(merged), num_codes)]
    num_active = len(np.unique(frames))
    return {
        "num_codes": num_codes,
        "active_codes": {"value": num_active / num_codes, "num_active": num_active, "n": len(tokens)},
        "tokens_per_second": measured_ratio(counts[1], seconds, seed=seed),
        "run_length": measured_ratio(*counts, seed=seed),
        "bits_per_second": {
            "frames": float(rates[0] * np.log2(num_codes)),
            "tokens": float(rates[1] * np.log2(num_codes)),
            "frame_entropy": float(rates[0] * entropies[0]),
            "token_entropy": float(rates[1] * entropies[1]),
        },
    }


def _entropy(tokens: np.ndarray, num_codes: int) -> float:
    """Return the entropy of the distribution of tokens, in bits per token."""
    return float(entropy(np.bincount(tokens, minlength=num_codes), base=2))


def measure_tokenizer(
    codec: SpeechCodec,
    utterances: Sequence[HeldOutUtterance],
    transcribe: Callable[[np.ndarray, int], str] | None = None,
    *,
    seed: int = 0,
) -> dict:
    """Measure one codec.

    Args:
        codec ([`SpeechCodec`]): the codec. The word error rate requires a vocoder.
        utterances: recordings that the codec was not trained on; "pnmi" and the purities require their timed phones.
        transcribe (`Callable`, *optional*): (waveform, sampling rate) -> text. Without it the word error rate is not
            measured.
        seed (`int`, defaults to 0): seed of the bootstrap over utterances.

    Returns:
        `dict`:

        - "frame_rate": of the units, in Hz;
        - "streams": {name: result of [`measure_stream`]} for "unit", and "pitch" and "style" if the codec has them;
        - "bits_per_second": of all streams in the input of a language model together, after entropy;
        - "pnmi", "phone_purity", "unit_purity": {"value", "n", "num_frames"};
        - "word_error_rate": {"original", "resynthesis"}.

        A measure whose requirements are missing is {"not_measured": reason}.
    """
    encoded = [codec.encode([utterance.waveform])[0] for utterance in utterances]
    seconds = [utterance.seconds for utterance in utterances]
    ranges = codec.token_layout().stream_ranges()
    streams = {
        name: measure_stream(
            [getattr(row, field) for row in encoded],
            seconds,
            len(ranges[name]),
            repeats=name in REPEATING_STREAMS,
            seed=seed,
        )
        for name, field in STREAM_FIELDS.items()
        if name in codec.stream_names
    }
    frame_rate = codec.speech_encoder.frame_rate
    return {
        "frame_rate": frame_rate,
        "streams": streams,
        "bits_per_second": sum(stream["bits_per_second"]["token_entropy"] for stream in streams.values()),
        **_measure_purity([row.units.tolist() for row in encoded], utterances, frame_rate),
        "word_error_rate": _measure_words(codec, utterances, transcribe),
    }


def _measure_purity(units: list[list[int]], utterances: Sequence[HeldOutUtterance], frame_rate: float) -> dict:
    if not all(utterance.phones for utterance in utterances):
        return dict.fromkeys(PURITY_MEASURES, not_measured("the phones of this set are not timed"))
    labels = [
        timed_phones_to_frames(utterance.phones, len(row), frame_rate)
        for utterance, row in zip(utterances, units, strict=True)
    ]
    purity = unit_purity(units, labels)
    return {
        name: {"value": getattr(purity, name), "n": len(units), "num_frames": purity.num_frames}
        for name in PURITY_MEASURES
    }


def _measure_words(
    codec: SpeechCodec, utterances: Sequence[HeldOutUtterance], transcribe: Callable[[np.ndarray, int], str] | None
) -> dict:
    if codec.vocoder is None:
        return not_measured("the codec has no vocoder")
    if transcribe is None:
        return not_measured("no recogniser was given")
    recordings = [SpokenText(item.id, item.waveform, item.text) for item in utterances]
    return evaluate_resynthesis(recordings, codec, transcribe).to_dict()


def report_tokenizers(
    codecs: Mapping[str, SpeechCodec],
    utterances: Sequence[HeldOutUtterance],
    transcribe: Callable[[np.ndarray, int], str] | None = None,
    *,
    seed: int = 0,
) -> dict:
    """Measure several codecs on the same recordings.

    Args:
        codecs (`Mapping`): name -> codec.
        utterances, transcribe, seed: as in [`measure_tokenizer`].

    Returns:
        `dict`, JSON-serializable: "set" {"n", "seconds", "voices"}, "tokenizers" {name: result of
        [`measure_tokenizer`]}, "convention" and "seed".

    Raises:
        ValueError: if there are no codecs or no utterances.
    """
    if not codecs or not utterances:
        raise ValueError(
            f"Found {len(codecs)} codecs and {len(utterances)} utterances; expected at least one of each."
        )
    return {
        "set": describe_set(utterances),
        "tokenizers": {
            name: measure_tokenizer(codec, utterances, transcribe, seed=seed) for name, codec in codecs.items()
        },
        "convention": CONVENTION,
        "seed": seed,
    }


def tokenizers_to_markdown(record: Mapping) -> str:
    """Return the record of [`report_tokenizers`] as a Markdown table with one column per tokenizer."""
    tokenizers = record["tokenizers"].values()
    rows = [["Units, frames per second", *(_format_units(item) for item in tokenizers)]]
    for stream in STREAM_FIELDS:
        if any(stream in item["streams"] for item in tokenizers):
            rows += _stream_rows(stream, [item["streams"].get(stream) for item in tokenizers])
    rows.append(
        ["**Bits per second, all tokens, entropy**", *(f"{item['bits_per_second']:.0f}" for item in tokenizers)]
    )
    for name, label in (("pnmi", "PNMI"), ("phone_purity", "Phone purity"), ("unit_purity", "Unit purity")):
        rows.append([label, *(format_number(item[name], 3) for item in tokenizers)])
    for name, label in (("original", "recording"), ("resynthesis", "resynthesis")):
        words = [item["word_error_rate"] for item in tokenizers]
        cells = [format_share(rate[name] if is_measured(rate) else rate) for rate in words]
        rows.append([f"Word error rate, {label}", *cells])
    found = record["set"]
    head = [f"{found['n']} recordings, {found['seconds']:.0f} s", *record["tokenizers"]]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * len(record["tokenizers"])]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _format_units(item: Mapping) -> str:
    return f"{item['streams']['unit']['num_codes']}, {item['frame_rate']:g}"


def _stream_rows(stream: str, records: Sequence[Mapping | None]) -> list[list[str]]:
    """Return the rows of one stream; the cell of a tokenizer without this stream is "-"."""
    name = stream.capitalize()

    def row(label: str, write: Callable[[Mapping], str]) -> list[str]:
        return [f"{name}: {label}", *("-" if record is None else write(record) for record in records)]

    return [
        row("codes in use", lambda item: f"{item['active_codes']['num_active']} of {item['num_codes']}"),
        row("tokens per second", lambda item: format_number(item["tokens_per_second"], 1)),
        row("frames a token", lambda item: format_number(item["run_length"], 2)),
        row("bits per second, frames / tokens", lambda item: _format_bits(item, "frames", "tokens")),
        row("the same by entropy", lambda item: _format_bits(item, "frame_entropy", "token_entropy")),
    ]


def _format_bits(item: Mapping, *names: str) -> str:
    return " / ".join(f"{item['bits_per_second'][name]:.0f}" for name in names)
