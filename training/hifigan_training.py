"""Train the code HiFi-GAN against its discriminators with the Trainer of transformers.

Losses and settings are those of HiFi-GAN (Kong et al. 2020, arXiv 2010.05646) with the duration loss of Polyak et al.
2021 (arXiv 2104.00355). Both sides step together: every step computes the losses of both from the same parameters,
where the paper lets the discriminators step first. One optimizer holds all parameters, which for AdamW is the same as
two.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import TrainingArguments, set_seed
from transformers.audio_utils import mel_filter_bank

from ..configuration_tinywave import HifiGanConfig
from ..data.hifigan_segments import HifiGanSegments, collate_hifigan_segments, read_hifigan_utterances
from ..hifigan_tinywave import HifiGanVocoder
from .hifigan_discriminators import (
    HifiGanDiscriminators,
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
)
from .resumable_trainer import ResumableTrainer

MEL_WINDOW = 1024
MEL_HOP = 256
NUM_MEL_BINS = 80
MEL_FLOOR = 1e-5


@dataclass
class HifiGanTrainingArguments(TrainingArguments):
    """Training arguments of the HiFi-GAN; the loss of the generator is the weighted sum of the terms named here."""

    learning_rate: float = field(default=2e-4, metadata={"help": "Initial learning rate of both sides."})
    adam_beta1: float = field(default=0.8, metadata={"help": "AdamW's decay of the mean."})
    adam_beta2: float = field(default=0.99, metadata={"help": "AdamW's decay of the variance."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's weight decay."})
    max_grad_norm: float = field(
        default=0.0, metadata={"help": "Off as published: one norm over both sides would let one brake the other."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: segments are no columns."})
    segment_samples: int = field(default=17_920, metadata={"help": "Samples per training segment (1.12 s at 16 kHz)."})
    discriminator_channels: int = field(default=1024, metadata={"help": "Width of the discriminators' last layers."})
    adversarial_weight: float = field(default=1.0, metadata={"help": "Weight of the least-squares adversarial loss."})
    features_weight: float = field(default=2.0, metadata={"help": "Weight of the feature-matching loss."})
    mel_weight: float = field(default=45.0, metadata={"help": "Weight of the L1 loss on the log-mel spectrogram."})
    duration_weight: float = field(default=1.0, metadata={"help": "Weight of the squared error of log(1 + duration)."})

    def __post_init__(self):
        super().__post_init__()
        if self.max_steps < 1:
            raise ValueError(f"Found max_steps={self.max_steps}; expected 1 or more: segments have no epochs.")
        if self.segment_samples < MEL_WINDOW:
            raise ValueError(f"Found segment_samples={self.segment_samples}; expected {MEL_WINDOW} or more.")


class HifiGanAdversary(nn.Module):
    """Generator and discriminators as one model, whose forward pass is the loss of both.

    Args:
        generator ([`HifiGanVocoder`]): the vocoder that is trained.
        discriminator_channels (`int`, default 1024): see [`HifiGanDiscriminators`].
        weights: weight of each term of the generator, by its name in the output of `forward`.
    """

    def __init__(self, generator: HifiGanVocoder, discriminator_channels: int, weights: dict[str, float]):
        super().__init__()
        self.generator = generator
        self.discriminators = HifiGanDiscriminators(discriminator_channels)
        self.weights = weights

    def forward(
        self, waveform, units, run_units, run_durations, pitch=None, style=None, speaker=None
    ) -> dict[str, torch.Tensor]:
        """Return "loss" and its terms: "discriminator", "adversarial", "features", "mel" and "duration".

        Args:
            waveform (`(B, S)`): real speech.
            units, pitch, style, speaker: of the same segments, as [`HifiGanVocoder.embed`] takes them.
            run_units, run_durations (`(B, U)`): de-duplicated units of the whole utterances, padded with -1.
        """
        generated = self.generator.generate_waveform(self.generator.embed(units, pitch, style, speaker))
        real = self.discriminators(waveform)
        # With parameters that take no gradient: here the generator learns, and the discriminators only judge.
        frozen = {name: parameter.detach() for name, parameter in self.discriminators.named_parameters()}
        judged = functional_call(self.discriminators, frozen, (generated,))
        terms = {
            "discriminator": discriminator_loss(real, self.discriminators(generated.detach())),
            "adversarial": adversarial_loss(judged),
            "features": feature_matching_loss(real, judged),
            "mel": mel_loss(generated, waveform, self.generator.sampling_rate),
        }
        if self.generator.dur_predictor is not None:
            terms["duration"] = duration_loss(self.generator.predict_log_durations(run_units), run_durations)
        loss = sum(self.weights.get(name, 1.0) * value for name, value in terms.items())
        return {"loss": loss, **terms}


def mel_loss(generated: torch.Tensor, real: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Mean absolute difference of the natural log-mel spectrograms of `(B, S)` and `(B, S)` (equation 3)."""
    return F.l1_loss(log_mel_spectrogram(generated, sampling_rate), log_mel_spectrogram(real, sampling_rate))


def log_mel_spectrogram(waveform: torch.Tensor, sampling_rate: int) -> torch.FloatTensor:
    """Waveform `(B, S)` -> natural log of 80 mel magnitudes up to half the sampling rate, `(B, 80, S // 256)`."""
    with torch.autocast(waveform.device.type, enabled=False):
        padding = (MEL_WINDOW - MEL_HOP) // 2
        padded = F.pad(waveform.float()[:, None], (padding, padding), mode="reflect")[:, 0]
        window = torch.hann_window(MEL_WINDOW, device=waveform.device)
        spectrum = torch.stft(padded, MEL_WINDOW, MEL_HOP, window=window, center=False, return_complex=True)
        # The small number keeps the gradient of the square root finite in silence.
        magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()
        mel = _mel_filters(sampling_rate).to(waveform.device) @ magnitude
        return mel.clamp(min=MEL_FLOOR).log()


@lru_cache
def _mel_filters(sampling_rate: int) -> torch.FloatTensor:
    filters = mel_filter_bank(
        num_frequency_bins=MEL_WINDOW // 2 + 1,
        num_mel_filters=NUM_MEL_BINS,
        min_frequency=0.0,
        max_frequency=sampling_rate / 2,
        sampling_rate=sampling_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters).float().T


def duration_loss(log_durations: torch.Tensor, durations: torch.Tensor) -> torch.Tensor:
    """Mean squared error of log(1 + duration), both `(B, U)`, where the duration is not -1."""
    real = durations > 0
    error = log_durations.float() - torch.log1p(durations.clamp(min=0).float())
    return (error.square() * real).sum() / real.sum()


class HifiGanTrainer(ResumableTrainer):
    """`Trainer` of a [`HifiGanAdversary`]; logs every term."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._terms: dict[str, torch.Tensor] = {}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        output = model(**inputs)
        self._terms = {name: value.detach() for name, value in output.items() if name != "loss"}
        return (output["loss"], output) if return_outputs else output["loss"]

    def log(self, logs: dict[str, float], *args, **kwargs):
        if "loss" in logs:
            logs = logs | {f"{name}_loss": round(float(value), 4) for name, value in self._terms.items()}
        super().log(logs, *args, **kwargs)


def train_hifigan(
    corpus_folder: str | Path,
    units_folder: str | Path,
    args: HifiGanTrainingArguments,
    config: HifiGanConfig | None = None,
    resume_from_checkpoint: bool | str | None = None,
) -> HifiGanVocoder:
    """Train a HiFi-GAN on the "train" split of a corpus and its units.

    Args:
        corpus_folder: what `tinywave prepare` wrote.
        units_folder: what `tinywave extract-units` made of it, with the streams that the configuration counts.
        args: Trainer arguments; `max_steps`, `seed`, `output_dir` and the loss weights matter most.
        config (default `HifiGanConfig()`): sizes of the vocoder.
        resume_from_checkpoint: as in `Trainer.train`.

    Returns:
        The vocoder without weight norm, for use.

    Raises:
        ValueError: shards that cannot be read, or that do not fit the configuration.
    """
    config = config or HifiGanConfig()
    utterances = read_hifigan_utterances(corpus_folder, units_folder, config)
    num_segments = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    set_seed(args.seed)
    weights = {name: getattr(args, f"{name}_weight") for name in ("adversarial", "features", "mel", "duration")}
    trainer = HifiGanTrainer(
        model=HifiGanAdversary(HifiGanVocoder(config), args.discriminator_channels, weights),
        args=args,
        train_dataset=HifiGanSegments(utterances, config, args.segment_samples, num_segments, args.seed),
        data_collator=collate_hifigan_segments,
    )
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    vocoder = trainer.accelerator.unwrap_model(trainer.model).generator.eval()
    vocoder.remove_weight_norm()
    return vocoder
