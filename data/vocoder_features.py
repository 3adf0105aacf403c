"""Training material of the vocoder: units of an utterance and the decoder inputs that speak it in the base voice.

The input may be any voice or style; the target is always the base style of hibari. Both speak the same phones, so the
target is stretched phone by phone onto the times of the input. The vocoder so learns to ignore who speaks.

For a vocoder that hears pitch and style, the pitch codes of the input are kept, and the target has the melody of the
input: hibari's mean F0, raised or lowered as in the style, times the input's F0 over the input's mean.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
import soxr
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from ..configuration_tinywave import VocoderConfig
from ..f0_tinywave import F0_RATE, F0Extractor
from ..pitch_encoder_tinywave import PitchEncoder
from ..speech_encoder_tinywave import SpeechEncoder
from ..vocoder_tinywave import F0_RANGE, SUBFRAMES, waveform_to_log_mel
from .f0_extraction import load_f0_extractor
from .hibari_voice import STYLES, VOICE, HibariDecoder, HibariVoice
from .kokoro_voice import KokoroVoice
from .pronunciation import Utterance
from .story_language import sample_story
from .text_items import book_sentences

TENSORS = ("units", "features", "f0", "energy", "log_mel")
MEAN_F0 = 197.0
"""Of hibari's base style, Hz: mean of 40 book sentences, whose own means lie within 189 and 214 Hz."""


@dataclass(frozen=True)
class VocoderItem:
    """One utterance to prepare.

    Attributes:
        text: what is said.
        split: "train", "validation" or "test".
        voice: "hibari" or the name of a Kokoro voice.
        style: hibari style, "base" unless the voice is hibari.
        warp: formant warp of hibari, 1.0 = none.
        noise_ratio: speech level over the level of added pink noise, dB; None adds none. The target stays clean.
        seed: of the noise in the synthesis and of the added noise.
    """

    text: str
    split: str
    voice: str = VOICE
    style: str = "base"
    warp: float = 1.0
    noise_ratio: float | None = None
    seed: int = 0


@dataclass
class VocoderExample:
    """One prepared utterance: U units at 25 Hz, T frames at 40 Hz.

    Attributes:
        units: `(U,)` int16.
        features: `(T, decoder_channels)` float16.
        f0: `(2 T,)` Hz, 0 = unvoiced.
        energy: `(2 T,)`.
        log_mel: `(2 T, num_mel_bins)` float16.
        text, split, voice: of the item.
        style: of the item; "" in features that were prepared without prosody.
        pitch: `(P,)` int16, pitch codes at 12.5 Hz; None in features that were prepared without prosody.
    """

    units: torch.Tensor
    features: torch.Tensor
    f0: torch.Tensor
    energy: torch.Tensor
    log_mel: torch.Tensor
    text: str
    split: str
    voice: str
    style: str = ""
    pitch: torch.Tensor | None = None


@dataclass(frozen=True)
class ProsodyReader:
    """What hears the pitch of an utterance, for a vocoder that is to speak with it.

    Attributes:
        extract_f0: waveform `(S,)` at 16 kHz -> F0 (Hz) and voiced flag at 200 Hz, as [`load_f0_extractor`] gives it.
        f0_to_codes: list of (f0, voiced) -> list of pitch codes `(P,)` at 12.5 Hz.
        num_codes: number of pitch codes.
        fingerprint: changes with the codes; features made with another one are made anew.
        follows_style: whether the target is as high as its style is, for a vocoder that hears the style too. Pitch
            codes are relative to the mean of an utterance, so without it no height can be learnt.
    """

    extract_f0: F0Extractor
    f0_to_codes: Callable[[list[tuple[np.ndarray, np.ndarray]]], list[torch.LongTensor]]
    num_codes: int
    fingerprint: str
    follows_style: bool = False

    @classmethod
    def from_encoder(cls, encoder: PitchEncoder, follows_style: bool = False) -> "ProsodyReader":
        """Read with a pitch encoder and the F0 extractor that it was trained with.

        Raises `ModuleNotFoundError` without the extractor's package.
        """
        digest = hashlib.sha256(encoder.config.f0_extractor.encode())
        for name, tensor in sorted(encoder.state_dict().items()):
            digest.update(name.encode() + tensor.float().numpy().tobytes())
        extractor = load_f0_extractor(encoder.config.f0_extractor)
        return cls(extractor, encoder.f0_to_codes, encoder.num_codes, digest.hexdigest()[:16], follows_style)


def sample_vocoder_texts(num_story_sentences: int = 600, seed: int = 0) -> list[tuple[str, str]]:
    """All book sentences of the training split and some story sentences, shuffled, as (text, "train") pairs.

    The books bring the sounds of English, the stories the words that the nano language models speak.
    """
    rng = Random(seed)
    sentences = dict.fromkeys(book_sentences("train"))
    num_sentences = len(sentences) + num_story_sentences
    while len(sentences) < num_sentences:
        sentences |= dict.fromkeys(sample_story(rng, "train").sentences)
    texts = [(sentence, "train") for sentence in sentences][:num_sentences]
    rng.shuffle(texts)
    return texts


def sample_vocoder_items(
    texts: Iterable[tuple[str, str]], kokoro_voices: Sequence[str] = (), kokoro_share: float = 0.0, seed: int = 0
) -> list[VocoderItem]:
    """Give every (text, split) one way of being spoken.

    Of what Kokoro does not speak, half is plain hibari and half another style and warp. A third of everything but the
    plain half is heard in noise, as real recordings are.
    """
    rng = Random(seed)
    items = []
    for index, (text, split) in enumerate(texts):
        draw = rng.random()
        if kokoro_share <= draw < (1 + kokoro_share) / 2:
            items.append(VocoderItem(text, split, seed=index))
            continue
        noise_ratio = round(rng.uniform(12, 35), 1) if rng.random() < 1 / 3 else None
        if draw < kokoro_share:
            manner = {"voice": rng.choice(list(kokoro_voices))}
        else:
            manner = {"style": rng.choice(list(STYLES)), "warp": round(rng.uniform(0.86, 1.16), 3)}
        items.append(VocoderItem(text, split, noise_ratio=noise_ratio, seed=index, **manner))
    return items


class VocoderSpeaker:
    """Speaks items and their targets.

    Args:
        kokoro: voices for the items that ask for one; without it only hibari items can be spoken.
    """

    def __init__(self, kokoro: KokoroVoice | None = None):
        self._hibari = HibariVoice()
        self._kokoro = kokoro

    def speak(self, item: VocoderItem) -> Utterance:
        """The utterance to encode; `ValueError` for a Kokoro voice where there is no Kokoro."""
        if item.voice == VOICE:
            utterance = self._hibari.synthesize(item.text, style=item.style, warp=item.warp, seed=item.seed)
        elif self._kokoro is None:
            raise ValueError(f"Found voice {item.voice!r} and no Kokoro voices; give VocoderSpeaker a KokoroVoice.")
        else:
            utterance = self._kokoro.synthesize(item.text, voice=item.voice)
        if item.noise_ratio is None:
            return utterance
        return replace(utterance, waveform=add_pink_noise(utterance.waveform, item.noise_ratio, item.seed))

    def speak_target(self, phonemes: str) -> Utterance:
        """The same phones in hibari's base style, with the inputs of its decoder."""
        return self._hibari.synthesize(phonemes=phonemes, return_features=True)

    @functools.cached_property
    def _decoder(self) -> HibariDecoder:
        return HibariDecoder()

    def decode_target(self, features: np.ndarray, f0: np.ndarray, energy: np.ndarray) -> np.ndarray:
        """Decoder inputs -> the waveform of the target at 24 kHz."""
        return self._decoder.decode(features, f0, energy)


def prepare_vocoder_features(
    items: Sequence[VocoderItem],
    encoder: SpeechEncoder,
    speaker: VocoderSpeaker,
    output_folder: str | Path,
    items_per_shard: int = 100,
    prosody: ProsodyReader | None = None,
) -> None:
    """Write one safetensors shard per `items_per_shard` items; finished shards are kept when it runs again.

    Args:
        items: what to speak.
        encoder: gives the units; shards made with another encoder or other items are made anew.
        speaker: gives the speech and the targets.
        output_folder: made if missing.
        prosody (*optional*): what hears the pitch. Default: the target has its own melody, for a vocoder of units
            alone.
    """
    output_folder = Path(output_folder)
    output_folder.mkdir(parents=True, exist_ok=True)
    made_with = [encoder.fingerprint()]
    if prosody is not None:
        made_with += [prosody.fingerprint, prosody.follows_style]
    shards = [items[start : start + items_per_shard] for start in range(0, len(items), items_per_shard)]
    for index, shard in enumerate(tqdm(shards, desc="vocoder features", unit="shard")):
        path = output_folder / f"shard-{index:05d}.safetensors"
        key = hashlib.sha256(json.dumps([*made_with, [asdict(item) for item in shard]]).encode()).hexdigest()
        if _shard_key(path) != key:
            _write_shard(path, _prepare_shard(shard, encoder, speaker, prosody), key)


def load_vocoder_features(folder: str | Path, split: str | None = None) -> list[VocoderExample]:
    """Read all shards of a folder, or one split of them.

    Raises:
        ValueError: no such utterance, or a shard that cannot be read.
    """
    examples = []
    for path in sorted(Path(folder).glob("shard-*.safetensors")):
        examples += [example for example in _read_shard(path) if split in (None, example.split)]
    if not examples:
        raise ValueError(
            f"Found no {split or ''} utterance in {folder}; expected shard-*.safetensors. "
            "Run prepare_vocoder_features first."
        )
    return examples


def add_pink_noise(waveform: np.ndarray, noise_ratio: float, seed: int) -> np.ndarray:
    """Add noise with equal power per octave, `noise_ratio` dB below the waveform; `(samples,)` -> `(samples,)`."""
    white = np.fft.rfft(np.random.default_rng(seed).standard_normal(len(waveform)))
    noise = np.fft.irfft(white / np.sqrt(np.maximum(np.arange(len(white)), 1)), len(waveform))
    level = np.sqrt(np.mean(waveform**2)) / np.sqrt(np.mean(noise**2)) * 10 ** (-noise_ratio / 20)
    return (waveform + level * noise).astype(np.float32)


def stretch_target(target: Utterance, phone_edges: np.ndarray, num_frames: int, config: VocoderConfig):
    """Bring the target onto another timeline, phone by phone and linearly inside each phone.

    Args:
        target: utterance with decoder features.
        phone_edges: start and end of every phone of the input, seconds, as `utterance_edges` returns them.
        num_frames: frames at 40 Hz to fill.

    Returns:
        features `(T, C)`, f0 `(2 T,)` with 0 = unvoiced, energy `(2 T,)`, log_mel `(2 T, M)` as float32 arrays.

    Raises:
        ValueError: the two utterances do not speak the same number of phones.
    """
    target_edges = utterance_edges(target)
    if len(target_edges) != len(phone_edges):
        raise ValueError(
            f"Found {len(target_edges) // 2} phones in the target and {len(phone_edges) // 2} in the input; "
            "expected the same phonemes in both."
        )
    log_mel = waveform_to_log_mel(torch.from_numpy(target.waveform), config).numpy()
    frame_rate = config.decoder_frame_rate

    def positions(rate: float, count: int) -> np.ndarray:
        times = (np.arange(count) + 0.5) / rate
        # Outside the phones both timelines run at the same speed.
        edges_in = np.concatenate([[phone_edges[0] - 10], phone_edges, [phone_edges[-1] + 10]])
        edges_out = np.concatenate([[target_edges[0] - 10], target_edges, [target_edges[-1] + 10]])
        return np.interp(times, edges_in, edges_out) * rate - 0.5

    coarse = positions(frame_rate, num_frames)
    fine = positions(frame_rate * SUBFRAMES, num_frames * SUBFRAMES)
    nearest = np.clip(np.round(fine).astype(int), 0, len(target.f0) - 1)
    f0 = target.f0[nearest].astype(np.float32)
    return (
        _interpolate_rows(target.decoder_features, coarse),
        np.where(f0 < F0_RANGE[0], np.float32(0), f0),
        _interpolate_rows(target.energy[:, None], fine)[:, 0],
        _interpolate_rows(log_mel, fine),
    )


def follow_melody(f0: np.ndarray, rate: float, heard: tuple[np.ndarray, np.ndarray], mean_f0: float) -> np.ndarray:
    """Give the voiced frames of a target the melody that was heard in the input, at another mean.

    Args:
        f0 (`(N,)`): of the target, Hz, 0 = unvoiced; only its voicing is kept.
        rate: frames of the target per second (Hz); frame i stands at (i + 0.5) / rate.
        heard: F0 (Hz) and voiced flag of the input at 200 Hz; F0 of unvoiced frames is not read.
        mean_f0: Hz.

    Returns:
        `(N,)` float32: `mean_f0` times the input's F0 over its mean, linear between its voiced frames, 0 where the
        target is unvoiced. Where nothing is voiced in the input, `f0` as it is.
    """
    heard_f0, voiced = heard
    if not voiced.any():
        return f0
    ratio = heard_f0[voiced] / heard_f0[voiced].mean()
    times = (np.arange(len(f0)) + 0.5) / rate
    melody = mean_f0 * np.interp(times, np.flatnonzero(voiced) / F0_RATE, ratio)
    return np.where(f0 > 0, np.clip(melody, *F0_RANGE), 0).astype(np.float32)


def utterance_edges(utterance: Utterance) -> np.ndarray:
    """Start and end of every phone in order, seconds, `(2 * phones,)`; pauses lie between one phone and the next."""
    return np.array([edge for phone in utterance.phones for edge in (phone.start, phone.end)])


def _prepare_shard(
    items: Sequence[VocoderItem], encoder: SpeechEncoder, speaker: VocoderSpeaker, prosody: ProsodyReader | None
) -> list[VocoderExample]:
    config = VocoderConfig()
    utterances = [speaker.speak(item) for item in items]
    waveforms = [soxr.resample(x.waveform, x.sampling_rate, encoder.sampling_rate) for x in utterances]
    melodies = [None] * len(items) if prosody is None else [prosody.extract_f0(waveform) for waveform in waveforms]
    codes = [None] * len(items) if prosody is None else prosody.f0_to_codes(melodies)
    examples = []
    rows = zip(items, utterances, encoder.encode(waveforms), melodies, codes, strict=True)
    for item, utterance, units, melody, pitch in rows:
        target = speaker.speak_target(utterance.phonemes)
        num_frames = int(np.floor(len(units) * config.decoder_frame_rate / config.unit_rate + 0.5))
        arrays = stretch_target(target, utterance_edges(utterance), num_frames, config)
        more = {}
        if prosody is not None:
            mean_f0 = MEAN_F0 * (STYLES[item.style].pitch if prosody.follows_style else 1.0)
            arrays = _with_melody(arrays, melody, mean_f0, speaker, config)
            more = {"style": item.style, "pitch": pitch.to(torch.int16)}
        features, f0, energy, log_mel = (torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)
        tensors = (units.to(torch.int16), features.half(), f0, energy, log_mel.half())
        examples.append(VocoderExample(*tensors, text=item.text, split=item.split, voice=item.voice, **more))
    return examples


def _with_melody(
    arrays: tuple, melody: tuple, mean_f0: float, speaker: VocoderSpeaker, config: VocoderConfig
) -> tuple:
    """Replace f0 of a stretched target by the melody that was heard, and log_mel by that of how it sounds then."""
    features, f0, energy, log_mel = arrays
    f0 = follow_melody(f0, config.decoder_frame_rate * SUBFRAMES, melody, mean_f0)
    waveform = speaker.decode_target(features, f0, energy)
    return features, f0, energy, waveform_to_log_mel(torch.from_numpy(waveform), config).numpy()[: len(log_mel)]


def _interpolate_rows(values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    positions = np.clip(positions, 0, len(values) - 1)
    left = np.floor(positions).astype(int)
    right = np.minimum(left + 1, len(values) - 1)
    weight = (positions - left)[:, None]
    return (values[left] * (1 - weight) + values[right] * weight).astype(np.float32)


def _write_shard(path: Path, examples: list[VocoderExample], key: str) -> None:
    tensors = {name: torch.cat([getattr(example, name) for example in examples]) for name in TENSORS}
    tensors["unit_counts"] = torch.tensor([len(example.units) for example in examples])
    tensors["frame_counts"] = torch.tensor([len(example.features) for example in examples])
    rows = [{"text": example.text, "split": example.split, "voice": example.voice} for example in examples]
    if examples[0].pitch is not None:
        tensors["pitch"] = torch.cat([example.pitch for example in examples])
        tensors["pitch_counts"] = torch.tensor([len(example.pitch) for example in examples])
        rows = [row | {"style": example.style} for row, example in zip(rows, examples, strict=True)]
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"key": key, "rows": json.dumps(rows)})
    os.replace(temporary, path)


def _shard_key(path: Path) -> str | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as shard:
            return (shard.metadata() or {}).get("key")
    except SafetensorError:
        return None


def _read_shard(path: Path) -> Iterator[VocoderExample]:
    try:
        with safe_open(path, framework="pt") as shard:
            rows = json.loads(shard.metadata()["rows"])
            tensors = {name: shard.get_tensor(name) for name in shard.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}); delete it and prepare the features again.") from error
    unit_counts, frame_counts = tensors["unit_counts"].tolist(), tensors["frame_counts"].tolist()
    subframe_counts = [SUBFRAMES * count for count in frame_counts]
    counts = [unit_counts, frame_counts, subframe_counts, subframe_counts, subframe_counts]
    parts = [tensors[name].split(count) for name, count in zip(TENSORS, counts, strict=True)]
    pitches = tensors["pitch"].split(tensors["pitch_counts"].tolist()) if "pitch" in tensors else [None] * len(rows)
    for row, pitch, *values in zip(rows, pitches, *parts, strict=True):
        yield VocoderExample(*values, **row, pitch=pitch)
