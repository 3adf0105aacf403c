"""Train the vocoder on prepared features with the Trainer of transformers."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import TrainingArguments

from ..configuration_tinywave import VocoderConfig
from ..data.vocoder_features import VocoderExample, load_vocoder_features
from ..tokenization_tinywave import deduplicate
from ..vocoder_inputs_tinywave import codes_at_frames, length_mask
from ..vocoder_tinywave import SUBFRAMES, Vocoder, VocoderOutput
from .resumable_trainer import ResumableTrainer
from .seeded_examples import SeededExamples

MIN_STD = 1e-4


@dataclass
class VocoderTrainingArguments(TrainingArguments):
    """Training arguments of the vocoder; the loss is the weighted sum of the terms named here."""

    crop_units: int = field(default=80, metadata={"help": "Units (25 Hz) per training crop; longer clips are cut."})
    unit_noise: float = field(default=0.0, metadata={"help": "Share of input units replaced by random ones."})
    prosody_dropout: float = field(
        default=0.0,
        metadata={
            "help": "Share of crops without pitch, and of crops without style, which trains a vocoder that works "
            "without them, too."
        },
    )
    log_f0_weight: float = field(default=1.0, metadata={"help": "Weight of the L1 loss on log f0 where voiced."})
    voicing_weight: float = field(default=1.0, metadata={"help": "Weight of the binary cross-entropy on voicing."})
    energy_weight: float = field(default=1.0, metadata={"help": "Weight of the L1 loss on energy."})
    log_mel_weight: float = field(default=0.3, metadata={"help": "Weight of the L1 loss on the log-mel spectrogram."})
    duration_weight: float = field(default=0.3, metadata={"help": "Weight of the L1 loss on log(1 + duration)."})

    def __post_init__(self):
        super().__post_init__()
        if self.crop_units < 5:
            raise ValueError(f"Found crop_units={self.crop_units}; expected 5 or more (0.2 s).")
        for name in ("unit_noise", "prosody_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"Found {name}={getattr(self, name)}; expected a share from 0 up to, not including, 1."
                )


class VocoderDataset(Dataset):
    """Random crops of prepared utterances; a crop begins where unit and frame edges coincide (every 5 units).

    Args:
        examples: prepared utterances, with pitch where the configuration counts pitch codes.
        config: of the vocoder.
        crop_units: length of a crop at 25 Hz; a shorter utterance is taken whole.
        style_names: the styles, in the order of their codes, where the configuration counts styles.

    Raises:
        ValueError: examples without pitch, with pitch codes out of range, or of an unknown style.
    """

    def __init__(
        self,
        examples: list[VocoderExample],
        config: VocoderConfig,
        crop_units: int,
        style_names: Sequence[str] = (),
    ):
        self.examples = examples
        self.config = config
        self.crop_units = crop_units
        self.edge = round(config.unit_rate) // math.gcd(round(config.unit_rate), round(config.decoder_frame_rate))
        self.codes = [self._codes(example, style_names) for example in examples]

    def _codes(self, example: VocoderExample, style_names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return the pitch and style codes at each unit, of shape `(U,)`, if they are inputs of the vocoder."""
        config, ones = self.config, torch.ones(len(example.units), dtype=torch.long)
        style = None
        if config.num_style_tokens:
            if example.style not in style_names:
                raise ValueError(f"Found the style {example.style!r}; expected one of {', '.join(style_names)}.")
            style = style_names.index(example.style)
        # The features hold pitch also for a vocoder whose only further input is style.
        pitch = example.pitch if config.num_pitch_tokens else None
        ratio = config.pitch_rate / config.unit_rate
        codes = {
            "pitch": codes_at_frames("pitch", pitch, ones, config.num_pitch_tokens, ratio),
            "style": codes_at_frames("style", style, ones, config.num_style_tokens, 1.0),
        }
        return {name: values for name, values in codes.items() if values is not None}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict:
        example = self.examples[index]
        start, stop = self._crop(len(example.units))
        frame_start = round(start * self.config.decoder_frame_rate / self.config.unit_rate)
        frame_stop = math.floor(stop * self.config.decoder_frame_rate / self.config.unit_rate + 0.5)
        frame_stop = min(frame_stop, len(example.features))
        frames = slice(frame_start, frame_stop)
        subframes = slice(frame_start * SUBFRAMES, frame_stop * SUBFRAMES)
        return {
            "units": example.units[start:stop].long(),
            "features": example.features[frames].float(),
            "f0": example.f0[subframes].reshape(-1, SUBFRAMES),
            "energy": example.energy[subframes].reshape(-1, SUBFRAMES),
            "log_mel": example.log_mel[subframes].float(),
            "all_units": example.units.long(),
            **{name: codes[start:stop] for name, codes in self.codes[index].items()},
        }

    def _crop(self, num_units: int) -> tuple[int, int]:
        room = max(0, num_units - self.crop_units) // self.edge
        start = int(torch.randint(room + 1, ())) * self.edge
        return start, min(num_units, start + self.crop_units)


def collate_vocoder_examples(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Pad crops to one batch: units and codes with lengths, targets over T frames, unit runs with durations."""
    pad = functools.partial(pad_sequence, batch_first=True)
    runs = [deduplicate(row["all_units"].tolist()) for row in rows]
    batch = {name: pad([row[name] for row in rows]) for name in rows[0].keys() - {"all_units"}}
    batch["lengths"] = torch.tensor([len(row["units"]) for row in rows])
    batch["frame_lengths"] = torch.tensor([len(row["features"]) for row in rows])
    batch["run_units"] = pad([torch.as_tensor(units).long() for units, _ in runs])
    batch["run_durations"] = pad([torch.as_tensor(durations).long() for _, durations in runs])
    batch["run_lengths"] = torch.tensor([len(units) for units, _ in runs])
    return batch


def vocoder_losses(
    output: VocoderOutput, batch: dict[str, torch.Tensor], output_std: torch.Tensor, output_sizes: list[int]
) -> dict[str, torch.Tensor]:
    """Return the mean losses over unpadded frames; L1 terms are in standard deviations of their target."""
    num_frames = min(output.features.shape[1], batch["features"].shape[1])
    mask = length_mask(torch.minimum(output.lengths, batch["frame_lengths"]), num_frames)
    features_std, log_f0_std, _, energy_std, log_mel_std = output_std.split(output_sizes)
    voiced = (batch["f0"][:, :num_frames] > 0).float()
    log_f0 = torch.log(batch["f0"][:, :num_frames].clamp(min=1.0))
    log_mel = output.log_mel.unflatten(1, (-1, SUBFRAMES))[:, :num_frames].flatten(2)
    log_mel_target = batch["log_mel"].unflatten(1, (-1, SUBFRAMES))[:, :num_frames].flatten(2)

    def distance(prediction, target, std, weight=mask):
        error = (prediction[:, :num_frames] - target[:, :num_frames]).abs() / std * weight
        return error.sum() / weight.expand_as(error).sum().clamp(min=1)

    voicing = F.binary_cross_entropy_with_logits(output.voicing_logits[:, :num_frames], voiced, reduction="none")
    return {
        "features": distance(output.features, batch["features"], features_std),
        "log_f0": distance(output.log_f0, log_f0, log_f0_std, mask * voiced),
        "voicing": (voicing * mask).sum() / mask.expand_as(voicing).sum(),
        "energy": distance(output.energy, batch["energy"], energy_std),
        "log_mel": distance(log_mel, log_mel_target, log_mel_std),
    }


def duration_loss(log_durations: torch.Tensor, durations: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute error of log(1 + duration) over unpadded units.

    All arguments are of shape `(B, U)`, except `lengths` of shape `(B,)`.
    """
    mask = length_mask(lengths, durations.shape[1]).squeeze(-1)
    error = (log_durations.float() - torch.log1p(durations.float())).abs() * mask
    return error.sum() / mask.sum()


class VocoderTrainer(ResumableTrainer):
    """`Trainer` with the loss of the vocoder; logs every term."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._terms: dict[str, torch.Tensor] = {}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        units = self._add_unit_noise(inputs["units"]) if model.training else inputs["units"]
        vocoder = self.accelerator.unwrap_model(model)
        prosody = [inputs.get(name) for name in ("pitch", "style")]
        if model.training and self.args.prosody_dropout:
            prosody = [None if codes is None else self._drop_rows(codes) for codes in prosody]
        output = model(units, inputs["lengths"], *prosody)
        terms = vocoder_losses(output, inputs, vocoder.output_std, vocoder.output_sizes)
        log_durations = vocoder.predict_log_durations(inputs["run_units"], inputs["run_lengths"])
        terms["duration"] = duration_loss(log_durations, inputs["run_durations"], inputs["run_lengths"])
        self._terms = {name: value.detach() for name, value in terms.items()}
        loss = sum(getattr(self.args, f"{name}_weight", 1.0) * value for name, value in terms.items())
        return (loss, output) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kwargs):
        if "loss" in logs:
            logs = logs | {f"{name}_loss": round(float(value), 4) for name, value in self._terms.items()}
        super().log(logs, *args, **kwargs)

    def _drop_rows(self, codes: torch.Tensor) -> torch.Tensor:
        is_dropped = torch.rand(len(codes), 1, device=codes.device) < self.args.prosody_dropout
        return codes.masked_fill(is_dropped, -1)

    def _add_unit_noise(self, units: torch.Tensor) -> torch.Tensor:
        replaced = torch.rand(units.shape, device=units.device) < self.args.unit_noise
        return torch.where(replaced, torch.randint_like(units, self.model.config.num_units), units)


def train_vocoder(
    features_folder: str | Path,
    args: VocoderTrainingArguments,
    config: VocoderConfig | None = None,
    resume_from_checkpoint: bool | str | None = None,
    style_names: Sequence[str] = (),
) -> Vocoder:
    """Train a vocoder on the "train" split of a folder made by `prepare_vocoder_features`.

    Args:
        features_folder: shards of prepared utterances.
        args: Trainer arguments; `max_steps`, `seed`, `output_dir` and the loss weights matter most.
        config (default `VocoderConfig()`): sizes of the network.
        resume_from_checkpoint: as in `Trainer.train`.
        style_names: the styles, in the order of their codes, if style is an input of the vocoder.

    Raises:
        ValueError: the folder holds no training utterance, or none with the pitch and style that `config` counts.
    """
    config = config or VocoderConfig()
    if (args.prosody_dropout > 0) != config.optional_prosody:
        raise ValueError(
            f"Found prosody_dropout={args.prosody_dropout} and optional_prosody={config.optional_prosody}; a vocoder "
            "speaks without pitch and style where it was trained to, so set both or neither."
        )
    examples = load_vocoder_features(features_folder, split="train")
    torch.manual_seed(args.seed)
    vocoder = Vocoder(config)
    set_output_statistics(vocoder, examples)
    dataset = VocoderDataset(examples, config, args.crop_units, style_names)
    trainer = VocoderTrainer(
        model=vocoder,
        args=args,
        train_dataset=SeededExamples(dataset, args.seed),
        data_collator=collate_vocoder_examples,
    )
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    return vocoder.eval()


def set_output_statistics(vocoder: Vocoder, examples: list[VocoderExample]) -> None:
    """Write mean and standard deviation of every target into the buffers that denormalise the head."""
    features = torch.cat([example.features.float() for example in examples])
    f0 = torch.cat([example.f0 for example in examples])
    log_f0 = torch.log(f0[f0 > 0])
    energy = torch.cat([example.energy for example in examples])
    log_mel = torch.cat([example.log_mel.float() for example in examples])
    means = [features.mean(0), log_f0.mean(), torch.zeros(()), energy.mean(), log_mel.mean(0)]
    stds = [features.std(0), log_f0.std(), torch.ones(()), energy.std(), log_mel.std(0)]
    repeats = [1, SUBFRAMES, SUBFRAMES, SUBFRAMES, SUBFRAMES]
    for buffer, values in ((vocoder.output_mean, means), (vocoder.output_std, stds)):
        parts = [value.reshape(-1).repeat(count) for value, count in zip(values, repeats, strict=True)]
        buffer.copy_(torch.cat(parts))
    vocoder.output_std.clamp_(min=MIN_STD)
