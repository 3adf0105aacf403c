"""Train the style encoder on a speech corpus with the Trainer of transformers."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import TrainingArguments

from ..configuration_tinywave import StyleEncoderConfig
from ..data.audio_io import load_audio
from ..data.corpus import iterate_corpus
from ..style_encoder_tinywave import StyleEncoder, StyleEncoderOutput
from .filter_bank import initialize_filter_bank
from .resumable_trainer import ResumableTrainer
from .seeded_examples import SeededExamples


@dataclass
class StyleTrainingArguments(TrainingArguments):
    """Training arguments of the style encoder."""

    min_crop_seconds: float = field(default=1.0, metadata={"help": "Shortest training crop, in seconds."})
    max_crop_seconds: float = field(default=5.0, metadata={"help": "Longest training crop, in seconds."})

    def __post_init__(self):
        super().__post_init__()
        if not 0.1 <= self.min_crop_seconds <= self.max_crop_seconds:
            raise ValueError(
                f"Found crops of {self.min_crop_seconds} to {self.max_crop_seconds} s; expected at least 0.1 s, and "
                "the shortest no longer than the longest."
            )


@dataclass(frozen=True)
class StyleExample:
    """One utterance: an encoded audio file and its style, an index into `style_names`."""

    audio: bytes
    style: int


def load_style_examples(
    corpus_folders: Sequence[str | os.PathLike],
    style_names: Sequence[str],
    split: str = "train",
    hours_per_style: float | None = None,
    seed: int = 0,
) -> list[StyleExample]:
    """Read the utterances of some styles, chosen at random.

    Args:
        corpus_folders: folders that `tinywave prepare` wrote.
        style_names: styles to read; rows of others are left out.
        split (`str`, default "train"): the only split that is looked at.
        hours_per_style (*optional*): hours of speech to take of each style. Default: everything.
        seed (`int`, default 0): of the choice.

    Raises `ValueError` when a style has no utterance.
    """
    rows: dict[str, list[tuple[int, str, float]]] = {name: [] for name in style_names}
    for number, folder in enumerate(corpus_folders):
        for row in iterate_corpus(folder, columns=("id", "split", "style", "num_samples", "sampling_rate")):
            if row["split"] == split and row["style"] in rows:
                rows[row["style"]].append((number, row["id"], row["num_samples"] / row["sampling_rate"]))
    chosen = set()
    for name, found in rows.items():
        if not found:
            folders = ", ".join(map(str, corpus_folders))
            raise ValueError(f"found no {split} utterance of the style {name!r} in {folders}")
        total = 0.0
        for index in np.random.default_rng(seed).permutation(len(found)):
            if hours_per_style is not None and total >= 3600 * hours_per_style:
                break
            chosen.add(found[index][:2])
            total += found[index][2]
    return [
        StyleExample(row["audio"]["bytes"], style_names.index(row["style"]))
        for number, folder in enumerate(corpus_folders)
        for row in iterate_corpus(folder, columns=("id", "style", "audio"))
        if (number, row["id"]) in chosen
    ]


class StyleDataset(Dataset):
    """Random crops; every style comes equally often, however many utterances it has."""

    def __init__(self, examples: Sequence[StyleExample], args: StyleTrainingArguments, sampling_rate: int = 16000):
        styles = sorted({example.style for example in examples})
        self.examples_of_style = [[item for item in examples if item.style == style] for style in styles]
        self.seconds = (args.min_crop_seconds, args.max_crop_seconds)
        self.sampling_rate = sampling_rate

    def __len__(self) -> int:
        return len(self.examples_of_style) * max(map(len, self.examples_of_style))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        number, style = divmod(index, len(self.examples_of_style))
        examples = self.examples_of_style[style]
        example = examples[number % len(examples)]
        waveform = torch.from_numpy(load_audio(example.audio, self.sampling_rate))
        shortest, longest = self.seconds
        size = round((shortest + (longest - shortest) * float(torch.rand(()))) * self.sampling_rate)
        start = int(torch.randint(max(0, len(waveform) - size) + 1, ()))
        return {"input_values": waveform[start : start + size], "label": torch.tensor(example.style)}


def collate_style_examples(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Pad waveforms to one batch with a mask; `labels` `(B,)`."""
    waveforms = [row["input_values"] for row in rows]
    masks = [torch.ones(len(waveform), dtype=torch.long) for waveform in waveforms]
    return {
        "input_values": pad_sequence(waveforms, batch_first=True),
        "attention_mask": pad_sequence(masks, batch_first=True),
        "labels": torch.stack([row["label"] for row in rows]),
    }


def style_loss(output: StyleEncoderOutput, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the windows, in nats; every window has the style of its utterance, labels `(B,)`."""
    real = output.styles >= 0
    return F.cross_entropy(output.logits[real].float(), labels[:, None].expand_as(real)[real])


class StyleTrainer(ResumableTrainer):
    """`Trainer` with the loss of the style encoder."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        output = model(inputs["input_values"], inputs["attention_mask"])
        loss = style_loss(output, inputs["labels"])
        return (loss, output) if return_outputs else loss


def train_style(
    examples: Sequence[StyleExample],
    args: StyleTrainingArguments,
    config: StyleEncoderConfig,
    resume_from_checkpoint: bool | str | None = None,
) -> StyleEncoder:
    """Train a style encoder.

    Args:
        examples: as [`load_style_examples`] returns them.
        args: Trainer arguments; `max_steps`, `seed`, `output_dir` and the lengths of the crops matter most.
        config: sizes of the network and names of the styles.
        resume_from_checkpoint: as in `Trainer.train`.
    """
    torch.manual_seed(args.seed)
    style_encoder = StyleEncoder(config)
    initialize_filter_bank(style_encoder.backbone.feature_extractor.conv_layers[0].conv, config.sampling_rate)
    trainer = StyleTrainer(
        model=style_encoder,
        args=args,
        train_dataset=SeededExamples(StyleDataset(examples, args, config.sampling_rate), args.seed),
        data_collator=collate_style_examples,
    )
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    return style_encoder.eval()


def style_accuracy(style_encoder: StyleEncoder, examples: Sequence[StyleExample]) -> dict[str, float]:
    """Return the mean over styles of the share of "window"s and of "utterance"s that are named rightly.

    An utterance has the style of most of its windows.
    """
    right = {"window": Counter(), "utterance": Counter()}
    total = {"window": Counter(), "utterance": Counter()}
    for example in examples:
        tokens = style_encoder.encode([load_audio(example.audio, style_encoder.sampling_rate)])[0].tolist()
        total["window"][example.style] += len(tokens)
        right["window"][example.style] += tokens.count(example.style)
        total["utterance"][example.style] += 1
        right["utterance"][example.style] += Counter(tokens).most_common(1)[0][0] == example.style
    return {
        kind: float(np.mean([right[kind][style] / count for style, count in total[kind].items()])) for kind in total
    }
