"""Train a small speech encoder on the units of a large one, with the Trainer of transformers.

The units come from `tinywave extract-units`, each from a whole utterance. The teacher itself runs only where its
features are an objective too.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soxr
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import TrainingArguments
from transformers.utils import ModelOutput

from ..configuration_tinywave import SpeechEncoderConfig
from ..data.unit_extraction import UnitUtterance
from ..speech_encoder_tinywave import SpeechEncoder
from ..speech_quantizers_tinywave import CentroidQuantizer
from .checkpoints import last_checkpoint
from .filter_bank import initialize_filter_bank
from .resumable_trainer import ResumableTrainer
from .seeded_examples import SeededExamples

IGNORED = -100
MASKED_SPAN = 5


@dataclass
class SpeechEncoderTrainingArguments(TrainingArguments):
    """Training arguments of the speech encoder: crops, their augmentation, and the weights of the loss terms."""

    other_voices_share: float = field(
        default=0.0,
        metadata={"help": "Least share of crops by voices other than the one that speaks most; they are repeated."},
    )
    crop_units: int = field(default=75, metadata={"help": "Units per training crop; shorter utterances are padded."})
    unit_weight: float = field(default=1.0, metadata={"help": "Weight of the cross-entropy on units, nats per frame."})
    feature_weight: float = field(
        default=0.0, metadata={"help": "Weight of the distance to the teacher's features; 0 needs no teacher."}
    )
    max_speed_change: float = field(
        default=0.0,
        metadata={"help": "Crops are played up to this share slower or faster, which changes pitch and formants too."},
    )
    max_gain: float = field(default=12.0, metadata={"help": "Crops get louder or softer by at most this, in dB."})
    noise_share: float = field(default=0.5, metadata={"help": "Share of crops to which white noise is added."})
    min_noise_ratio: float = field(default=10.0, metadata={"help": "Lowest signal-to-noise ratio of these, in dB."})
    max_noise_ratio: float = field(default=40.0, metadata={"help": "Highest signal-to-noise ratio of these, in dB."})
    max_tilt: float = field(
        default=0.0,
        metadata={"help": "Crops get brighter or darker by at most this, in dB an octave, as by another microphone."},
    )
    room_share: float = field(default=0.0, metadata={"help": "Share of crops that are heard in a room, with echoes."})
    mask_share: float = field(
        default=0.0, metadata={"help": "Share of frames hidden from the transformer, in spans of 5 (0.2 s)."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.crop_units < MASKED_SPAN:
            raise ValueError(f"Found crop_units={self.crop_units}; expected {MASKED_SPAN} or more.")
        for name in ("noise_share", "room_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Found {name}={getattr(self, name)}; expected a share from 0 to 1.")
        for name in ("mask_share", "max_speed_change", "other_voices_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"Found {name}={getattr(self, name)}; expected a share from 0 to less than 1.")
        if self.unit_weight <= 0 or self.feature_weight < 0:
            raise ValueError(
                f"Found unit_weight={self.unit_weight} and feature_weight={self.feature_weight}; the first must be "
                "above 0, and neither below."
            )


class SpeechEncoderDataset(Dataset):
    """A random crop of every utterance, with the units that the teacher found in the whole utterance.

    A crop that is played faster or slower keeps its units, so that the encoder learns the same units for all voices.
    """

    def __init__(
        self, utterances: Sequence[UnitUtterance], encoder: SpeechEncoder, args: SpeechEncoderTrainingArguments
    ):
        self.utterances = utterances
        self.args = args
        self.sampling_rate = encoder.sampling_rate
        self.samples_per_unit = encoder.samples_per_unit
        self.num_samples = (args.crop_units - 1) * encoder.samples_per_unit + encoder.samples_per_window

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return one crop.

        `input_values` and, for the teacher, `clean_values`, both `(num_samples,)` and zero after the utterance;
        `labels` `(crop_units,)`, -100 after it.
        """
        samples, units = self._crop(self.utterances[index])
        padding = (0, self.num_samples - len(samples))
        crop = {
            "input_values": F.pad(self._augment(samples), padding),
            "labels": F.pad(units, (0, self.args.crop_units - len(units)), value=IGNORED),
        }
        return crop | ({"clean_values": F.pad(samples, padding)} if self.args.feature_weight else {})

    def _crop(self, utterance: UnitUtterance) -> tuple[torch.Tensor, torch.LongTensor]:
        """Return samples at a random speed and the unit in the middle of each of their frames."""
        change = self.args.max_speed_change
        speed = float(torch.empty(()).uniform_(1 - change, 1 + change))
        num_units = math.ceil(self.args.crop_units * speed)
        start = int(torch.randint(max(1, len(utterance.units) - num_units + 1), ()))
        samples = utterance.read_samples(start * self.samples_per_unit, math.ceil(self.num_samples * speed))
        if change:
            samples = soxr.resample(samples, self.sampling_rate * speed, self.sampling_rate)[: self.num_samples]
        frames = start + ((np.arange(self.args.crop_units) + 0.5) * speed).astype(np.int64)
        units = utterance.units[frames[frames < len(utterance.units)]].astype(np.int64)
        return torch.from_numpy(samples), torch.from_numpy(units)

    def _augment(self, samples: torch.Tensor) -> torch.Tensor:
        """Add a room and noise to some crops, change timbre and loudness of all; the teacher's input stays clean."""
        args = self.args
        if args.room_share and torch.rand(()) < args.room_share:
            samples = add_room(samples, self.sampling_rate)
        if args.max_tilt:
            tilt = float(torch.empty(()).uniform_(-args.max_tilt, args.max_tilt))
            samples = tilt_spectrum(samples, tilt, self.sampling_rate)
        if torch.rand(()) < args.noise_share:
            ratio = torch.empty(()).uniform_(args.min_noise_ratio, args.max_noise_ratio)
            level = samples.square().mean().sqrt() * 10 ** (-ratio / 20)
            samples = samples + level * torch.randn_like(samples)
        return samples * 10 ** (torch.empty(()).uniform_(-args.max_gain, args.max_gain) / 20)


def add_room(samples: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Return samples with the echoes of a random room: noise that decays exponentially after the direct sound.

    The reverberation time (decay by 60 dB) is drawn from 0.1 to 0.6 s, and the energy of the echoes of an impulse from
    0 to 15 dB below that of its direct sound. Nothing is delayed: the direct sound stays where it is.

    Args:
        samples: of shape `(S,)`.
        sampling_rate: in Hz.
    """
    seconds = float(torch.empty(()).uniform_(0.1, 0.6))
    times = torch.arange(1, round(seconds * sampling_rate)) / sampling_rate
    echoes = torch.randn(len(times)) * 10 ** (-3 * times / seconds)
    level = 10 ** (-float(torch.empty(()).uniform_(0, 15)) / 20)
    response = torch.cat([torch.ones(1), level * echoes / echoes.norm()])
    size = len(samples) + len(response)
    return torch.fft.irfft(torch.fft.rfft(samples, size) * torch.fft.rfft(response, size), size)[: len(samples)]


def tilt_spectrum(samples: torch.Tensor, decibels_per_octave: float, sampling_rate: int) -> torch.Tensor:
    """Return samples whose spectrum is tilted around 1 kHz; below 60 Hz it is as at 60 Hz.

    Args:
        samples: of shape `(S,)`.
        decibels_per_octave: above 0 is brighter.
        sampling_rate: in Hz.
    """
    frequencies = torch.fft.rfftfreq(len(samples), 1 / sampling_rate)
    gain = 10 ** (decibels_per_octave * torch.log2(frequencies.clamp(min=60) / 1000) / 20)
    return torch.fft.irfft(torch.fft.rfft(samples) * gain, len(samples))


def balance_voices(utterances: Sequence[UnitUtterance], other_voices_share: float) -> list[UnitUtterance]:
    """Repeat the utterances of all voices but the most frequent one until they are at least this share of all.

    Otherwise the encoder would fit mainly the voice that speaks most of the corpus. If there is only one voice, the
    utterances are returned unchanged.
    """
    counts = Counter(utterance.voice for utterance in utterances)
    main_voice = counts.most_common(1)[0][0]
    others = [utterance for utterance in utterances if utterance.voice != main_voice]
    if not others:
        return list(utterances)
    wanted = other_voices_share / (1 - other_voices_share) * counts[main_voice]
    return [*utterances, *others * max(0, math.ceil(wanted / len(others)) - 1)]


@dataclass
class SpeechEncoderTrainingOutput(ModelOutput):
    """Losses of a batch: `loss` is the weighted sum of `unit_loss` and `feature_loss`.

    `accuracy`: share of frames on which the largest output is the teacher's unit.
    """

    loss: torch.Tensor | None = None
    unit_loss: torch.Tensor | None = None
    feature_loss: torch.Tensor | None = None
    accuracy: torch.Tensor | None = None


def feature_distance(features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean L1 distance - log sigmoid of the cosine (Chang et al. 2022, DistilHuBERT, arXiv 2110.01900, eq. 1).

    Args:
        features, targets: of shape `(N, D)`.
    """
    distance = (features - targets).abs().mean()
    return distance - F.logsigmoid(F.cosine_similarity(features, targets, dim=-1)).mean()


class SpeechEncoderForDistillation(nn.Module):
    """A speech encoder with what only its training needs: masking, losses, and a projector to the teacher's features.

    Args:
        encoder: with a linear quantizer.
        args: weights and masking.
        teacher_quantizer (`CentroidQuantizer`, *optional*): normalises the teacher's features; needed when
            `args.feature_weight` is above 0. Where the student's features are as wide, the projector begins as this
            normalisation, as is right for a student that was cut from the teacher.

    Raises `ValueError` for another encoder.
    """

    def __init__(
        self,
        encoder: SpeechEncoder,
        args: SpeechEncoderTrainingArguments,
        teacher_quantizer: CentroidQuantizer | None = None,
    ):
        super().__init__()
        if encoder.config.quantizer != "linear":
            raise ValueError("only encoders with a linear quantizer can be distilled; centroids are not trained")
        if encoder.config.weight_bits:
            raise ValueError("found weights of 8 bits, which do not learn; call unround_weights first")
        self.encoder = encoder
        self.args = args
        if args.feature_weight:
            self.projector = _new_projector(encoder.backbone.hidden_size, teacher_quantizer)

    def forward(
        self,
        input_values: torch.Tensor,
        labels: torch.LongTensor,
        teacher_features: torch.Tensor | None = None,
    ) -> SpeechEncoderTrainingOutput:
        """Compare crops with the teacher.

        Args:
            input_values (`torch.Tensor` of shape `(B, S)`): crops of U units each.
            labels (`torch.LongTensor` of shape `(B, U)`): the teacher's units, -100 after the end of an utterance.
            teacher_features (`torch.Tensor` of shape `(N, D)`, *optional*): its normalised features of the N frames
                that have a unit.
        """
        waveforms = unpadded_crops(input_values, labels, self.encoder)
        convolved = self.encoder.backbone.waveforms_to_convolved(waveforms)
        if self.training and self.args.mask_share:
            convolved = [item * _kept_frames(len(item), self.args.mask_share).to(item) for item in convolved]
        frames = self.encoder.backbone.convolved_to_frames(convolved)
        features = torch.cat([self.encoder.pool(item) for item in frames])
        labels = labels[labels != IGNORED]
        logits = self.encoder.quantizer.logits(features).float()
        output = SpeechEncoderTrainingOutput(
            unit_loss=F.cross_entropy(logits, labels),
            accuracy=(logits.detach().argmax(-1) == labels).float().mean(),
        )
        output.loss = self.args.unit_weight * output.unit_loss
        if teacher_features is not None:
            output.feature_loss = feature_distance(self.projector(features).float(), teacher_features)
            output.loss = output.loss + self.args.feature_weight * output.feature_loss
        return output


def unpadded_crops(values: torch.Tensor, labels: torch.LongTensor, encoder: SpeechEncoder) -> list[torch.Tensor]:
    """Return the crops `(B, S)` without padding, as at inference: each ends with the last frame that has a unit."""
    lengths = [
        (int(count) - 1) * encoder.samples_per_unit + encoder.samples_per_window
        for count in (labels != IGNORED).sum(1)
    ]
    return [row[:length] for row, length in zip(values, lengths, strict=True)]


def _new_projector(hidden_size: int, quantizer: CentroidQuantizer) -> nn.Linear:
    """Student's features -> normalised features of the teacher: that normalisation, where the widths are the same."""
    projector = nn.Linear(hidden_size, len(quantizer.mean))
    if projector.in_features == projector.out_features:
        with torch.no_grad():
            projector.weight.copy_(torch.diag(1 / quantizer.standard_deviation))
            projector.bias.copy_(-quantizer.mean / quantizer.standard_deviation)
    return projector


def _kept_frames(num_frames: int, mask_share: float) -> torch.Tensor:
    """Return `(T, 1)`, 0 on randomly placed spans that cover about `mask_share` of the frames, 1 elsewhere."""
    # A frame is kept when none of the spans that could reach it begins: (1 - p)^span = 1 - share.
    probability = 1 - (1 - mask_share) ** (1 / MASKED_SPAN)
    begins = (torch.rand(1, num_frames + MASKED_SPAN - 1) < probability).float()
    return 1 - F.max_pool1d(begins, MASKED_SPAN, stride=1).T


class SpeechEncoderTrainer(ResumableTrainer):
    """`Trainer` that runs the teacher if its features are in the loss, and logs every loss term and the accuracy."""

    def __init__(self, *args, teacher: SpeechEncoder | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.teacher = None if teacher is None else teacher.to(self.args.device)
        self._terms: dict[str, torch.Tensor] = {}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        clean_values = inputs.pop("clean_values", None)
        if clean_values is not None:
            inputs["teacher_features"] = self._teacher_features(clean_values, inputs["labels"])
        output = model(**inputs)
        self._terms = {name: output[name].detach() for name in output if name != "loss"}
        return (output.loss, output) if return_outputs else output.loss

    @torch.no_grad()
    def _teacher_features(self, clean_values: torch.Tensor, labels: torch.LongTensor) -> torch.Tensor:
        """Return normalized features `(N, D)` of the labeled frames, for clean input cropped like the student's."""
        waveforms = unpadded_crops(clean_values, labels, self.teacher)
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
            features = self.teacher.extract_features(waveforms, batch_size=len(waveforms))
        return self.teacher.quantizer.normalize(torch.cat(features))

    def log(self, logs: dict[str, float], *args, **kwargs):
        if "loss" in logs:
            logs = logs | {name: round(float(value), 4) for name, value in self._terms.items()}
        super().log(logs, *args, **kwargs)


def untrained_speech_encoder(config: SpeechEncoderConfig, seed: int) -> SpeechEncoder:
    """Return a speech encoder with random weights, whose first convolution is initialized as a mel filter bank."""
    torch.manual_seed(seed)
    encoder = SpeechEncoder(config)
    initialize_filter_bank(encoder.backbone.feature_extractor.conv_layers[0].conv, encoder.sampling_rate)
    return encoder


def train_speech_encoder(
    encoder: SpeechEncoder,
    utterances: Sequence[UnitUtterance],
    args: SpeechEncoderTrainingArguments,
    teacher: SpeechEncoder | None = None,
) -> SpeechEncoder:
    """Train a speech encoder on the units of a teacher; continues an interrupted run.

    Args:
        encoder: with a linear quantizer; `untrained_speech_encoder` or `prune_speech_encoder` makes one.
        utterances: audio and the teacher's units, from `load_unit_utterances`.
        args: Trainer arguments; `output_dir` holds the checkpoints.
        teacher (*optional*): the encoder of these units, with centroids; needed when `args.feature_weight` is above 0.

    Raises `ValueError` when units, teacher and configuration do not fit each other.
    """
    largest = max(int(utterance.units.max()) for utterance in utterances)
    num_units = encoder.config.num_units
    if largest >= num_units:
        raise ValueError(f"found unit {largest}, but num_units is {num_units}; set it to the teacher's number")
    if args.feature_weight and (teacher is None or teacher.config.quantizer != "centroids"):
        raise ValueError(
            f"found feature_weight={args.feature_weight} but no teacher with centroids; features are compared with "
            "its own, normalised as its centroids are: give one, or set feature_weight to 0"
        )
    dataset = SpeechEncoderDataset(balance_voices(utterances, args.other_voices_share), encoder, args)
    trainer = SpeechEncoderTrainer(
        model=SpeechEncoderForDistillation(encoder, args, teacher.quantizer if teacher else None),
        args=args,
        train_dataset=SeededExamples(dataset, args.seed),
        teacher=teacher,
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(Path(args.output_dir)))
    return encoder.eval()
