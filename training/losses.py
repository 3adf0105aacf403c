"""Losses on hidden states, and the mask of supervised positions, as pure functions of tensors.

Every loss is a weighted sum over positions; the caller divides it by the number of supervised tokens of the whole
optimizer step. The sum over micro-batches and ranks is therefore exact, whatever their padding. The losses on
attention maps are in `attention_losses`, those on logits in `logits_losses`.

Shapes: B batch, T positions, d hidden size. All losses are computed in fp32 or higher precision.
"""

import torch
import torch.nn.functional as F

IGNORED_LABEL = -100


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Return a half-precision tensor in fp32, and an fp32 or fp64 tensor unchanged."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def supervised_positions(labels: torch.Tensor) -> torch.Tensor:
    """Return the mask of the positions whose next token is a target. Every loss term uses the same positions.

    Args:
        labels (`torch.LongTensor` of shape `(B, T)`): token ids, and -100 at positions without a target.

    Returns:
        `torch.BoolTensor` of shape `(B, T)`: True at `t` if `labels[:, t + 1]` is a target; False at the last
        position.
    """
    return F.pad(labels[:, 1:] != IGNORED_LABEL, (0, 1), value=False)


def cosine_hidden_loss(
    student_hidden: torch.Tensor, teacher_hidden: torch.Tensor, position_weights: torch.Tensor
) -> torch.Tensor:
    """Compute `sum_t w_t * (1 - cos(student_t, teacher_t))`, the hidden-state term of arXiv 2506.23670.

    Args:
        student_hidden (`torch.Tensor` of shape `(B, T, d)`): student block output, projected to the teacher's width
            if the widths differ.
        teacher_hidden (`torch.Tensor` of shape `(B, T, d)`): output of the mapped teacher block.
        position_weights (`torch.Tensor` of shape `(B, T)`): weight `w_t` of each position; 0 excludes it.

    Returns:
        `torch.Tensor`: a scalar in [0, 2 * sum(w)]. It does not depend on the norms of the vectors.
    """
    student, teacher = at_least_float32(student_hidden), at_least_float32(teacher_hidden)
    # Equal to F.cosine_similarity, which would keep normalized copies of both tensors for the backward pass.
    lengths = [torch.linalg.vector_norm(states, dim=-1).clamp_min(1e-8) for states in (student, teacher)]
    cosine = (student * teacher).sum(dim=-1) / (lengths[0] * lengths[1])
    return ((1.0 - cosine) * position_weights).sum()


def mse_hidden_loss(
    student_hidden: torch.Tensor, teacher_hidden: torch.Tensor, position_weights: torch.Tensor
) -> torch.Tensor:
    """Compute `sum_t w_t * mean_d (student - teacher)^2`.

    The loss is that of FitNets (arXiv 1412.6550, equation 3) up to the factors 1/2 and d. It scales with the square of
    the teacher's activations, which in Llama models grow from block to block. The arguments are those of
    [`cosine_hidden_loss`].

    Returns:
        `torch.Tensor`: a scalar.
    """
    squared = (at_least_float32(student_hidden) - at_least_float32(teacher_hidden)).square().mean(dim=-1)
    return (squared * position_weights).sum()


def normalized_mse_hidden_loss(
    student_hidden: torch.Tensor, teacher_hidden: torch.Tensor, position_weights: torch.Tensor
) -> torch.Tensor:
    """Compute `sum_t w_t * |student_t - teacher_t|^2 / |teacher_t|^2`, the squared error relative to the teacher.

    An all-zero student has a loss of 1 per position, whatever the scale of the block. Unlike the cosine loss, this
    loss also compares the norms of the vectors. Where the teacher vector is zero, the squared error is not divided.
    The arguments are those of [`cosine_hidden_loss`].

    Returns:
        `torch.Tensor`: a scalar.
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
