"""Train the pitch encoder on prepared F0 with the Trainer of transformers.

The encoder and the decoder learn by gradient, the codebook by moving averages of the latents that choose each code
(van den Oord et al. 2017, arXiv 1711.00937, appendix A.1); codes that nothing chooses are restarted at random latents
(Dhariwal et al. 2020, arXiv 2005.00341, section 3). The defaults are those of Polyak et al. 2021 (arXiv 2104.00355).
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import TrainingArguments

from ..configuration_tinywave import PitchEncoderConfig
from ..data.f0_extraction import F0Contour, load_f0
from ..pitch_encoder_tinywave import CodeQuantizer, PitchEncoder, PitchEncoderOutput, contour_to_features
from .resumable_trainer import ResumableTrainer
from .seeded_examples import SeededExamples


@dataclass
class PitchTrainingArguments(TrainingArguments):
    """Training arguments of the pitch encoder."""

    learning_rate: float = field(default=2e-4, metadata={"help": "Initial learning rate."})
    adam_beta1: float = field(default=0.8, metadata={"help": "Adam's decay of the mean."})
    adam_beta2: float = field(default=0.99, metadata={"help": "Adam's decay of the variance."})
    crop_frames: int = field(default=208, metadata={"help": "F0 frames (200 Hz) per training crop."})
    commitment_weight: float = field(default=0.02, metadata={"help": "Weight of the distance of latents to codes."})
    codebook_decay: float = field(default=0.99, metadata={"help": "Decay of the moving averages of the codebook."})
    restart_count: float = field(
        default=1.0, metadata={"help": "A code that fewer latents of a batch choose, on average, is restarted."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.crop_frames < 1:
            raise ValueError(f"Found crop_frames={self.crop_frames}; expected at least the frames of one code.")
        if not 0 < self.codebook_decay < 1:
            raise ValueError(f"Found codebook_decay={self.codebook_decay}; expected a share between 0 and 1.")


class PitchDataset(Dataset):
    """Random crops of F0 contours; the mean of the whole utterance is removed before a crop is taken."""

    def __init__(self, contours: list[F0Contour], crop_frames: int):
        self.features = [contour_to_features(contour.f0, contour.voiced) for contour in contours]
        self.crop_frames = crop_frames

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> torch.Tensor:
        features = self.features[index]
        start = int(torch.randint(max(0, len(features) - self.crop_frames) + 1, ()))
        return features[start : start + self.crop_frames]


def collate_contours(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Pad features `(T, 2)` to one batch with lengths."""
    lengths = torch.tensor([len(row) for row in rows])
    return {"features": pad_sequence(rows, batch_first=True), "lengths": lengths}


def pitch_losses(output: PitchEncoderOutput, features: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the mean squared errors over unpadded frames and codes.

    "reconstruction" is that of relative F0 (Hz) and voiced flag together, "commitment" that of the latents from their
    codes.
    """
    real = output.codes >= 0
    frames_per_code = output.reconstruction.shape[1] // real.shape[1]
    frames = real.repeat_interleave(frames_per_code, dim=1)
    target = features[:, : frames.shape[1]].to(output.reconstruction.dtype)
    return {
        "reconstruction": (output.reconstruction - target)[frames].square().mean(),
        "commitment": (output.latents - output.quantized.detach())[real].square().mean(),
    }


@torch.no_grad()
def initialize_codebook(quantizer: CodeQuantizer, latents: torch.Tensor) -> None:
    """Set every code to a random one of the latents `(M, D)`."""
    quantizer.codebook.copy_(_random_rows(latents, len(quantizer.codebook)))
    quantizer.code_counts.fill_(1.0)


@torch.no_grad()
def update_codebook(
    quantizer: CodeQuantizer,
    latents: torch.Tensor,
    codes: torch.Tensor,
    decay: float = 0.99,
    restart_count: float = 1.0,
    reduce=lambda tensor: tensor,
) -> torch.Tensor:
    """Update every code towards the mean of the latents assigned to it, and restart rarely used codes.

    Args:
        quantizer: changed in place.
        latents: `(M, D)` of one batch.
        codes: `(M,)`, the code of each.
        decay: of the moving averages of count and sum.
        restart_count: a code whose average count falls below becomes a random latent.
        reduce: sums a tensor over all processes.

    Returns:
        The number of codes that were not restarted, a scalar tensor.
    """
    chosen = torch.nn.functional.one_hot(codes, len(quantizer.codebook)).to(latents.dtype)
    sums, counts = reduce(chosen.T @ latents), reduce(chosen.sum(0))
    old_sums = quantizer.code_counts[:, None] * quantizer.codebook
    new_counts = decay * quantizer.code_counts + (1 - decay) * counts
    means = (decay * old_sums + (1 - decay) * sums) / new_counts[:, None].clamp(min=1e-8)
    alive = new_counts >= restart_count
    random = broadcast(_random_rows(latents, len(quantizer.codebook)))
    quantizer.codebook.copy_(torch.where(alive[:, None], means, random))
    quantizer.code_counts.copy_(new_counts)
    return alive.sum()


def _random_rows(latents: torch.Tensor, count: int) -> torch.Tensor:
    """Return `count` random rows, with repetition only where there are too few."""
    repeats = -(-count // len(latents))
    return latents.repeat(repeats, 1)[torch.randperm(repeats * len(latents), device=latents.device)[:count]]


class PitchTrainer(ResumableTrainer):
    """`Trainer` with the loss and the codebook of the pitch encoder; logs every term and the codes in use."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._terms: dict[str, torch.Tensor] = {}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        pitch_encoder = self.accelerator.unwrap_model(model)
        if model.training and not pitch_encoder.quantizer.is_fitted:
            self._initialize_codebook(pitch_encoder, inputs)
        output = model(**inputs)
        terms = pitch_losses(output, inputs["features"])
        self._terms = {f"{name}_loss": value.detach() for name, value in terms.items()}
        if model.training:
            real = output.codes >= 0
            self._terms["codes_in_use"] = update_codebook(
                pitch_encoder.quantizer,
                output.latents[real].detach(),
                output.codes[real],
                self.args.codebook_decay,
                self.args.restart_count,
                self.accelerator.reduce,
            )
        loss = terms["reconstruction"] + self.args.commitment_weight * terms["commitment"]
        return (loss, output) if return_outputs else loss

    @torch.no_grad()
    def _initialize_codebook(self, pitch_encoder: PitchEncoder, inputs: dict[str, torch.Tensor]) -> None:
        output = pitch_encoder(**inputs)
        initialize_codebook(pitch_encoder.quantizer, output.latents[output.codes >= 0])
        broadcast(pitch_encoder.quantizer.codebook)

    def log(self, logs: dict[str, float], *args, **kwargs):
        if "loss" in logs:
            logs = logs | {name: round(float(value), 4) for name, value in self._terms.items()}
        super().log(logs, *args, **kwargs)


def train_pitch(
    f0_folder: str | Path,
    args: PitchTrainingArguments,
    config: PitchEncoderConfig | None = None,
    resume_from_checkpoint: bool | str | None = None,
) -> PitchEncoder:
    """Train a pitch encoder on the "train" split of a folder made by `prepare_f0`.

    Args:
        f0_folder: shards of F0 contours.
        args: Trainer arguments; `max_steps`, `seed`, `output_dir` and the crop matter most.
        config (default `PitchEncoderConfig()`): sizes of the network, and the extractor that the F0 came from.
        resume_from_checkpoint: as in `Trainer.train`.

    Raises:
        ValueError: the folder holds no training utterance, or crops are shorter than a code.
    """
    config = config or PitchEncoderConfig()
    if args.crop_frames < config.frames_per_code:
        raise ValueError(f"Found crop_frames={args.crop_frames}; expected the {config.frames_per_code} of a code.")
    contours = [item for item in load_f0(f0_folder, "train") if len(item.f0) >= config.frames_per_code]
    torch.manual_seed(args.seed)
    pitch_encoder = PitchEncoder(config)
    trainer = PitchTrainer(
        model=pitch_encoder,
        args=args,
        train_dataset=SeededExamples(PitchDataset(contours, args.crop_frames), args.seed),
        data_collator=collate_contours,
    )
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    return pitch_encoder.eval()


def f0_correlation(pitch_encoder: PitchEncoder, contours: list[F0Contour]) -> float:
    """Return Pearson's correlation of F0 with what its codes decode to, over all voiced frames of all utterances.

    Both contours are relative to the mean of their utterance, so that differences between voices do not count.
    """
    codes = pitch_encoder.f0_to_codes([(contour.f0, contour.voiced) for contour in contours])
    pairs = []
    for contour, tokens in zip(contours, codes, strict=True):
        decoded = pitch_encoder.codes_to_f0(tokens).numpy()
        relative = contour_to_features(contour.f0, contour.voiced)[: len(decoded), 0].numpy()
        voiced = contour.voiced[: len(decoded)]
        pairs.append((relative[voiced], decoded[voiced]))
    original, decoded = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return float(np.corrcoef(original, decoded)[0, 1])
