"""The losses on hidden states, and the rule which positions count, as pure functions of tensors.

Every loss is a weighted sum over positions that the caller divides by the number of supervised tokens of the whole
optimizer step. That makes micro-batches and ranks add up exactly, whatever their padding. The losses on attention
maps are in `attention_losses`, those on logits in `logits_losses`.

Shapes: B batch, T positions, d hidden size. All losses are computed in fp32 at least.
"""

import torch
import torch.nn.functional as F

IGNORED_LABEL = -100


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Half precisions as fp32; fp32 and fp64 as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def supervised_positions(labels: torch.Tensor) -> torch.Tensor:
    """Mark the positions whose next token is a target: the same positions count in every term.

    Args:
        labels (`torch.LongTensor` of shape `(B, T)`): token ids, -100 where nothing is to be learnt.

    Returns:
        `torch.BoolTensor` of shape `(B, T)`: True at t when `labels[:, t + 1]` is a target; False at the end.
    """
    return F.pad(labels[:, 1:] != IGNORED_LABEL, (0, 1), value=False)


def cosine_hidden_loss(
    student_hidden: torch.Tensor, teacher_hidden: torch.Tensor, position_weights: torch.Tensor
) -> torch.Tensor:
    """`sum_t w_t * (1 - cos(student_t, teacher_t))`, the hidden-state term of arXiv 2506.23670.

    Args:
        student_hidden (`torch.Tensor` of shape `(B, T, d)`): block output, already projected if widths differ.
        teacher_hidden (`torch.Tensor` of shape `(B, T, d)`): output of the mapped teacher block.
        position_weights (`torch.Tensor` of shape `(B, T)`): 0 drops a position.

    Returns:
        `torch.Tensor`: a scalar in [0, 2 * sum(w)]. The lengths of the vectors are not compared.
    """
    student, teacher = at_least_float32(student_hidden), at_least_float32(teacher_hidden)
    # As F.cosine_similarity, which would keep normalised copies of both for its gradient.
    lengths = [torch.linalg.vector_norm(states, dim=-1).clamp_min(1e-8) for states in (student, teacher)]
    cosine = (student * teacher).sum(dim=-1) / (lengths[0] * lengths[1])
    return ((1.0 - cosine) * position_weights).sum()


def mse_hidden_loss(
    student_hidden: torch.Tensor, teacher_hidden: torch.Tensor, position_weights: torch.Tensor
) -> torch.Tensor:
    """`sum_t w_t * mean_d (student - teacher)^2` (FitNets, arXiv 1412.6550, equation 3, up to the factor 1/2 and d).

    Arguments as in [`cosine_hidden_loss`]. The value grows with the square of the teacher's activations, which in
    Llama models grow from block to block.
    """
    squared = (at_least_float32(student_hidden) - at_least_float32(teacher_hidden)).square().mean(dim=-1)
    return (squared * position_weights).sum()


def normalized_mse_hidden_loss(
    student_hidden: torch.Tensor, teacher_hidden: torch.Tensor, position_weights: torch.Tensor
) -> torch.Tensor:
    """`sum_t w_t * |student_t - teacher_t|^2 / |teacher_t|^2`: the squared error in units of the teacher's own energy.

    Arguments as in [`cosine_hidden_loss`]. A student of zeros has 1 per position, whatever the scale of the block,
    and unlike the cosine the length of the vectors is learnt too. A teacher vector of zeros is compared unscaled.
    """
    teacher = at_least_float32(teacher_hidden)
    squared = (at_least_float32(student_hidden) - teacher).square().sum(dim=-1)
    energy = teacher.square().sum(dim=-1)
    return (squared / torch.where(energy > 0, energy, 1.0) * position_weights).sum()


HIDDEN_LOSSES = {
    "cosine": cosine_hidden_loss,
    "mse": mse_hidden_loss,
    "normalized_mse": normalized_mse_hidden_loss,
}
