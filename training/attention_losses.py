"""Losses on attention maps, computed in blocks of rows so that no complete map is in memory.

Shapes: B batch, T positions, H attention heads, K key/value heads, D head size, R relation heads. Scores are computed
in fp32 or higher precision. Every loss is a sum over positions, as in `losses`.
"""

import torch

from .losses import at_least_float32

# (query rows, score elements) of one block of attention maps, sized for the cache of a CPU core and to occupy a GPU.
_CPU_ATTENTION_BLOCK = (32, 2**18)
_GPU_ATTENTION_BLOCK = (256, 2**26)


def attention_kl(
    student_query: torch.Tensor,
    student_key: torch.Tensor,
    teacher_query: torch.Tensor,
    teacher_key: torch.Tensor,
    position_weights: torch.Tensor,
    *,
    student_scaling: float,
    teacher_scaling: float,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute `sum_t w_t * mean_h KL(teacher row || student row)` between attention distributions, head to head.

    The rows `softmax(scaling * q k^T)` of both models are recomputed in blocks of rows, and the gradient
    `(p_student - p_teacher) * w` with respect to the scores is applied immediately, so that no T x T map is stored:
    memory grows with T, not with T^2, and does not depend on the number of aligned decoder blocks.

    Args:
        student_query (`torch.Tensor` of shape `(B, H, T, D)`): queries after RoPE.
        student_key (`torch.Tensor` of shape `(B, K, T, D)`): keys after RoPE; K divides H (grouped queries).
        teacher_query, teacher_key: the same of the teacher, with H heads; its K and D may differ.
        position_weights (`torch.Tensor` of shape `(B, T)`): weight of each query row.
        student_scaling, teacher_scaling (`float`): factor on the scores, usually `D ** -0.5`.
        mask (`torch.BoolTensor` of shape `(B, 1, T, T)`, *optional*): True where a query may attend to a key, for
            padding or packed documents. It must be causal. `None` is a causal mask.

    Returns:
        `torch.Tensor`: a scalar in nats. Only the student's queries and keys receive a gradient.

    Raises:
        ValueError: if the models have different numbers of attention heads.
    """
    num_heads = student_query.shape[1]
    if teacher_query.shape[1] != num_heads:
        raise ValueError(
            f"Head-to-head attention distillation needs equal numbers of heads; found {num_heads} in the student "
            f"and {teacher_query.shape[1]} in the teacher."
        )
    with torch.autocast(student_query.device.type, enabled=False):
        return _AttentionKL.apply(
            at_least_float32(student_query) * student_scaling,
            at_least_float32(_repeat_keys(student_key, num_heads)),
            at_least_float32(teacher_query.detach()) * teacher_scaling,
            at_least_float32(_repeat_keys(teacher_key, num_heads).detach()),
            position_weights.to(torch.promote_types(student_query.dtype, torch.float32)),
            None if mask is None else mask.expand(len(student_query), -1, -1, -1),
            torch.is_grad_enabled(),
        )


def relation_kl(
    student_vectors: torch.Tensor,
    teacher_vectors: torch.Tensor,
    position_weights: torch.Tensor,
    *,
    num_relation_heads: int,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute `sum_t w_t * mean_r KL(teacher relation row || student relation row)`, for different head counts.

    As in MiniLMv2 (arXiv 2012.15828, section 3.1), the vectors of all heads are concatenated and split again into R
    relation heads of size d_r. `softmax(a a^T / sqrt(d_r))` is the relation map of one kind of vector (queries with
    queries, or keys with keys); both models have R such maps, whatever the number and the size of their attention
    heads. Because the models are causal, a row ends at its own position.

    Args:
        student_vectors (`torch.Tensor` of shape `(B, H, T, D)`): queries or keys after RoPE.
        teacher_vectors (`torch.Tensor`): the same of the teacher; its H and D may differ.
        position_weights (`torch.Tensor` of shape `(B, T)`): weight of each row.
        num_relation_heads (`int`): R; it divides H * D of both models.
        mask (`torch.BoolTensor` of shape `(B, 1, T, T)`, *optional*): as in [`attention_kl`].

    Returns:
        `torch.Tensor`: a scalar in nats. Only the student's vectors receive a gradient.

    Raises:
        ValueError: if R does not divide the concatenated size H * D of both models.
    """
    student, teacher = (
        _split_relation_heads(vectors, num_relation_heads) for vectors in (student_vectors, teacher_vectors)
    )
    return attention_kl(
        student,
        student,
        teacher,
        teacher,
        position_weights,
        student_scaling=student.shape[-1] ** -0.5,
        teacher_scaling=teacher.shape[-1] ** -0.5,
        mask=mask,
    )


def _split_relation_heads(vectors: torch.Tensor, num_relation_heads: int) -> torch.Tensor:
    """`(B, H, T, D)` -> `(B, R, T, H * D / R)`."""
    joined = vectors.transpose(1, 2).flatten(2)
    if num_relation_heads < 1 or joined.shape[-1] % num_relation_heads:
        raise ValueError(
            f"{num_relation_heads} relation heads cannot share {joined.shape[-1]} numbers ({vectors.shape[1]} heads "
            f"of {vectors.shape[-1]}); choose a number that divides it."
        )
    return joined.unflatten(2, (num_relation_heads, -1)).transpose(1, 2)


class _AttentionKL(torch.autograd.Function):
    """Row-blocked attention KL; the gradients of query and key are accumulated in the forward pass."""

    @staticmethod
    def forward(ctx, query, key, teacher_query, teacher_key, weights, mask, with_gradient):
        heads, length = query.shape[1], query.shape[2]
        row_weights = weights / heads
        query, key, teacher_query, teacher_key = (
            tensor.flatten(0, 1) for tensor in (query, key, teacher_query, teacher_key)
        )
        query_gradient = torch.empty_like(query) if with_gradient else None
        key_gradient = torch.zeros_like(key) if with_gradient else None
        loss = query.new_zeros(())
        for batch, start, stop in _score_blocks(weights.shape[0], heads, length, query.device):
            flat = slice(batch.start * heads, batch.stop * heads)
            rows = (flat, slice(start, stop))
            keys = (flat, slice(0, stop))
            block_mask = _block_mask(mask, batch, start, stop, heads, query.device)
            scores = _scores(query[rows], key[keys], block_mask, start)
            teacher_scores = _scores(teacher_query[rows], teacher_key[keys], block_mask, start)
            student, teacher = scores.softmax(-1), teacher_scores.softmax(-1)
            # KL = sum_k p^T (s^T - s^S) + logsumexp(s^S) - logsumexp(s^T): no logarithm of a whole map.
            kl = _log_sum_exp(scores, student) - _log_sum_exp(teacher_scores, teacher)
            kl += teacher_scores.sub_(scores).mul_(teacher).sum(-1)
            row_weight = row_weights[batch, None, start:stop].expand(-1, heads, -1).flatten(0, 1)
            loss += (kl * row_weight).sum()
            if with_gradient:
                score_gradient = student.sub_(teacher).mul_(row_weight[..., None])
                query_gradient[rows] = torch.bmm(score_gradient, key[keys])
                key_gradient[keys].baddbmm_(score_gradient.transpose(1, 2), query[rows])
        if with_gradient:
            ctx.save_for_backward(query_gradient, key_gradient)
            ctx.heads = heads
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, loss_gradient):
        query_gradient, key_gradient = (
            (tensor * loss_gradient).unflatten(0, (-1, ctx.heads)) for tensor in ctx.saved_tensors
        )
        return query_gradient, key_gradient, None, None, None, None, None


def _score_blocks(batch_size: int, heads: int, length: int, device: torch.device):
    """Yield (batch slice, first row, last row + 1) such that a block of scores stays small."""
    num_rows, limit = _CPU_ATTENTION_BLOCK if device.type == "cpu" else _GPU_ATTENTION_BLOCK
    for start in range(0, length, num_rows):
        stop = min(start + num_rows, length)
        group = max(1, limit // (heads * (stop - start) * stop))
        for first in range(0, batch_size, group):
            yield slice(first, min(first + group, batch_size)), start, stop


def _block_mask(mask, batch, start, stop, heads, device):
    """Return the mask of forbidden keys of a block: `(rows, stop)` if causal, else `(b * heads, rows, stop)`."""
    if mask is None:
        return torch.ones(stop - start, stop - start, dtype=torch.bool, device=device).triu(1)
    forbidden = ~mask[batch, :, start:stop, :stop]
    return forbidden.expand(-1, heads, -1, -1).flatten(0, 1)


def _scores(query, key, forbidden, start):
    """Return the attention scores of the rows from `start` on, over the keys up to the last row."""
    scores = torch.bmm(query, key.transpose(1, 2))
    # The lowest number instead of -inf, so that a padding row without any allowed key stays finite.
    lowest = torch.finfo(scores.dtype).min
    if forbidden.dim() == 2:
        scores[..., start:].masked_fill_(forbidden, lowest)
    else:
        scores.masked_fill_(forbidden, lowest)
    return scores


def _log_sum_exp(scores, probabilities):
    """Return the log-denominator of the softmax, from the most likely key instead of a second pass of exponentials."""
    return scores.amax(-1) - probabilities.amax(-1).log()


def _repeat_keys(key: torch.Tensor, num_heads: int) -> torch.Tensor:
    return key if key.shape[1] == num_heads else key.repeat_interleave(num_heads // key.shape[1], dim=1)
