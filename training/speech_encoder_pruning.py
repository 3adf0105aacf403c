"""Initialize a small Whisper speech encoder from its teacher, with narrower feed-forward layers.

Feed-forward units are ranked by their activations on real speech (Muralidharan et al. 2024, Minitron, arXiv
2407.14679, section 2.2), and the output weights of the units that are kept are fitted, by least squares, to the output
of all units (He et al. 2017, arXiv 1707.06168, section 3.1). The attention and the convolutions are copied whole, and
the distances to the teacher's centroids, which determine the speech unit, are written as a linear layer.

Shapes: N frames of the calibration speech, D width, H feed-forward units of the teacher, F of the student, K units.
"""

from collections.abc import Sequence

import torch
from torch import nn
from tqdm import tqdm

from ..configuration_tinywave import SpeechEncoderConfig
from ..speech_encoder_tinywave import SpeechEncoder
from ..speech_quantizers_tinywave import CentroidQuantizer, LinearQuantizer

DISTANCE_SCALE = 16.0
"""Half the squared distance, between normalised features and two centroids, that makes one unit e times likelier."""
_RIDGE = 1e-4
_SAME_SIZES = ("d_model", "encoder_attention_heads", "num_mel_bins")


@torch.no_grad()
def prune_speech_encoder(
    teacher: SpeechEncoder, config: SpeechEncoderConfig, waveforms: Sequence[torch.Tensor]
) -> SpeechEncoder:
    """Prune a Whisper speech encoder with centroids to a narrower one with a linear quantizer.

    Args:
        teacher ([`SpeechEncoder`]): encoder with a 'whisper' backbone and centroids.
        config ([`SpeechEncoderConfig`]): config of the student: that of the teacher except for `encoder_ffn_dim`,
            `max_source_positions`, the blocks, and `quantizer="linear"` without hidden sizes.
        waveforms: calibration speech, each 1-D at the teacher's sampling rate. It must have more frames than the
            teacher has feed-forward units, preferably ten times as many (for Whisper base: seven minutes).

    Returns:
        [`SpeechEncoder`]: the student.

    Raises:
        ValueError: if teacher and config do not match.
    """
    student = SpeechEncoder(config)
    _check(teacher, student)
    moments = _feed_forward_moments(teacher, waveforms)
    positions = teacher.backbone.embed_positions.weight[: student.backbone.max_frames]
    state = teacher.backbone.state_dict() | {"embed_positions.weight": positions}
    width = student.backbone.config.encoder_ffn_dim
    for index, layer in enumerate(teacher.backbone.layers):
        kept = _most_useful_units(layer.fc2.weight, moments[index], width)
        weight, bias = _refit(layer.fc2, moments[index], kept)
        state[f"layers.{index}.fc1.weight"] = layer.fc1.weight[kept]
        state[f"layers.{index}.fc1.bias"] = layer.fc1.bias[kept]
        state[f"layers.{index}.fc2.weight"] = weight
        state[f"layers.{index}.fc2.bias"] = bias
    student.backbone.load_state_dict(state)
    _write_distances(teacher.quantizer, student.quantizer)
    return student


def _check(teacher: SpeechEncoder, student: SpeechEncoder) -> None:
    for name, encoder in (("teacher", teacher), ("student", student)):
        if (encoder.config.backbone_config or {}).get("model_type") != "whisper":
            raise ValueError(f"the {name} has no 'whisper' backbone; only such encoders are pruned")
    if teacher.config.quantizer != "centroids" or student.config.quantizer != "linear":
        raise ValueError("expected a teacher with centroids and a student with a linear quantizer")
    if student.config.quantizer_hidden_sizes:
        raise ValueError("found quantizer_hidden_sizes; distances to centroids are one linear layer, leave them out")
    if student.config.weight_bits:
        raise ValueError("found weight_bits in the student's config; it has to learn first, round it after training")
    pairs = {name: (getattr(teacher.config, name), getattr(student.config, name)) for name in ("layer", "num_units")}
    for name in _SAME_SIZES:
        pairs[name] = tuple(getattr(encoder.backbone.config, name) for encoder in (teacher, student))
    for name, (found, wanted) in pairs.items():
        if found != wanted:
            raise ValueError(f"{name} is {wanted}, but the teacher's is {found}; pruning keeps it, set it to that")
    widths = [encoder.backbone.config.encoder_ffn_dim for encoder in (teacher, student)]
    if widths[1] > widths[0]:
        raise ValueError(f"encoder_ffn_dim is {widths[1]}, more than the teacher's {widths[0]}")


def _feed_forward_moments(teacher: SpeechEncoder, waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Second moments of the feed-forward units of every layer and a constant 1, each `(H + 1, H + 1)`, float64."""
    width = teacher.backbone.config.encoder_ffn_dim
    sums = [torch.zeros(width + 1, width + 1, dtype=torch.float64) for _ in teacher.backbone.layers]
    num_frames = 0

    def watch(index):
        def hook(module, inputs):
            nonlocal num_frames
            units = inputs[0].flatten(0, -2)
            units = nn.functional.pad(units, (0, 1), value=1.0)
            sums[index] += (units.T @ units).cpu().double()
            num_frames += len(units) if index == 0 else 0

        return hook

    handles = [
        layer.fc2.register_forward_pre_hook(watch(index)) for index, layer in enumerate(teacher.backbone.layers)
    ]
    try:
        for waveform in tqdm(waveforms, desc="pruning", unit="recording"):
            teacher.extract_features([waveform])
    finally:
        for handle in handles:
            handle.remove()
    if not num_frames:
        raise ValueError("found no speech to rank feed-forward units by; expected at least one waveform")
    return [total / num_frames for total in sums]


def _most_useful_units(weight: torch.Tensor, moments: torch.Tensor, number: int) -> torch.Tensor:
    """Indices `(number,)` of the units whose varying part adds most to the output; their constant part is refitted."""
    means = moments[:-1, -1]
    variances = moments.diagonal()[:-1] - means.square()
    scores = variances.clamp(min=0).sqrt() * weight.cpu().double().norm(dim=0)
    return scores.topk(number).indices.sort().values


def _refit(output: nn.Linear, moments: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight `(D, F)` and bias `(D,)` with which the kept units come closest to the output of all, in mean square."""
    whole = torch.cat([output.weight, output.bias[:, None]], dim=1).cpu().double()
    chosen = torch.cat([kept, torch.tensor([len(moments) - 1])])
    square = moments[chosen][:, chosen]
    square = square + _RIDGE * square.diagonal().mean() * torch.eye(len(chosen), dtype=square.dtype)
    fitted = torch.linalg.solve(square, moments[chosen] @ whole.T).T.float()
    return fitted[:, :-1], fitted[:, -1]


def _write_distances(centroids: CentroidQuantizer, linear: LinearQuantizer) -> None:
    """Set a linear layer so that its outputs are distances to centroids, with the blank less likely than any unit."""
    layer = linear.layers[0]
    weight = centroids.centroids / centroids.standard_deviation
    bias = -centroids.centroids.square().sum(-1) / 2 - weight @ centroids.mean
    layer.weight[:-1], layer.bias[:-1] = weight / DISTANCE_SCALE, bias / DISTANCE_SCALE
    layer.weight[-1], layer.bias[-1] = layer.weight[:-1].mean(0), layer.bias[:-1].min()
