"""Training material of the vocoder: units of an utterance and the decoder inputs that speak it in the base voice.

The input may be any voice or style; the target is always the base style of hibari. Both speak the same phones, so the
target is stretched phone by phone onto the times of the input. The vocoder so learns to ignore who speaks.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
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
from ..speech_encoder_tinywave import SpeechEncoder
from ..vocoder_tinywave import F0_RANGE, SUBFRAMES, waveform_to_log_mel
from .hibari_voice import STYLES, VOICE, HibariVoice
from .kokoro_voice import KokoroVoice
from .pronunciation import Utterance
from .story_language import sample_story
from .text_items import book_sentences

TENSORS = ("units", "features", "f0", "energy", "log_mel")


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
    """

    units: torch.Tensor
    features: torch.Tensor
    f0: torch.Tensor
    energy: torch.Tensor
    log_mel: torch.Tensor
    text: str
    split: str
    voice: str


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


def prepare_vocoder_features(
    items: Sequence[VocoderItem],
    encoder: SpeechEncoder,
    speaker: VocoderSpeaker,
    output_folder: str | Path,
    items_per_shard: int = 100,
) -> None:
    """Write one safetensors shard per `items_per_shard` items; finished shards are kept when it runs again.

    Args:
        items: what to speak.
        encoder: gives the units; shards made with another encoder or other items are made anew.
        speaker: gives the speech and the targets.
        output_folder: made if missing.
    """
    output_folder = Path(output_folder)
    output_folder.mkdir(parents=True, exist_ok=True)
    fingerprint = encoder.fingerprint()
    shards = [items[start : start + items_per_shard] for start in range(0, len(items), items_per_shard)]
    for index, shard in enumerate(tqdm(shards, desc="vocoder features", unit="shard")):
        path = output_folder / f"shard-{index:05d}.safetensors"
        key = hashlib.sha256(json.dumps([fingerprint, [asdict(item) for item in shard]]).encode()).hexdigest()
        if _shard_key(path) != key:
            _write_shard(path, _prepare_shard(shard, encoder, speaker), key)


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


def utterance_edges(utterance: Utterance) -> np.ndarray:
    """Start and end of every phone in order, seconds, `(2 * phones,)`; pauses lie between one phone and the next."""
    return np.array([edge for phone in utterance.phones for edge in (phone.start, phone.end)])


def _prepare_shard(
    items: Sequence[VocoderItem], encoder: SpeechEncoder, speaker: VocoderSpeaker
) -> list[VocoderExample]:
    config = VocoderConfig()
    utterances = [speaker.speak(item) for item in items]
    waveforms = [soxr.resample(x.waveform, x.sampling_rate, encoder.sampling_rate) for x in utterances]
    examples = []
    for item, utterance, units in zip(items, utterances, encoder.encode(waveforms), strict=True):
        target = speaker.speak_target(utterance.phonemes)
        num_frames = int(np.floor(len(units) * config.decoder_frame_rate / config.unit_rate + 0.5))
        arrays = stretch_target(target, utterance_edges(utterance), num_frames, config)
        features, f0, energy, log_mel = (torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)
        tensors = (units.to(torch.int16), features.half(), f0, energy, log_mel.half())
        examples.append(VocoderExample(*tensors, text=item.text, split=item.split, voice=item.voice))
    return examples


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
            tensors = {name: shard.get_tensor(name) for name in (*TENSORS, "unit_counts", "frame_counts")}
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}); delete it and prepare the features again.") from error
    unit_counts, frame_counts = tensors["unit_counts"].tolist(), tensors["frame_counts"].tolist()
    subframe_counts = [SUBFRAMES * count for count in frame_counts]
    counts = [unit_counts, frame_counts, subframe_counts, subframe_counts, subframe_counts]
    parts = [tensors[name].split(count) for name, count in zip(TENSORS, counts, strict=True)]
    for row, *values in zip(rows, *parts, strict=True):
        yield VocoderExample(*values, **row)
