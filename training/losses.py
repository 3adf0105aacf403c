"""The distillation losses, as pure functions of tensors.

Every loss is a weighted sum over positions that the caller divides by the number of supervised tokens of the whole
optimizer step. That makes micro-batches and ranks add up exactly, whatever their padding.

Shapes: B batch, T positions, N = supervised tokens, d hidden size, V vocabulary, H attention heads, K key/value heads,
D head size. All losses are computed in fp32 (logits are multiplied in the dtype of the LM heads).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

IGNORED_LABEL = -100
# (query rows, score elements) of one block of attention maps: what a CPU core's cache holds, and what fills a GPU.
_CPU_ATTENTION_BLOCK = (32, 2**18)
_GPU_ATTENTION_BLOCK = (256, 2**26)


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
    cosine = F.cosine_similarity(student_hidden.float(), teacher_hidden.float(), dim=-1)
    return ((1.0 - cosine) * position_weights).sum()


def mse_hidden_loss(
    student_hidden: torch.Tensor, teacher_hidden: torch.Tensor, position_weights: torch.Tensor
) -> torch.Tensor:
    """`sum_t w_t * mean_d (student - teacher)^2`; arguments as in [`cosine_hidden_loss`]."""
    squared = (student_hidden.float() - teacher_hidden.float()).square().mean(dim=-1)
    return (squared * position_weights).sum()


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
    """`sum_t w_t * mean_h KL(teacher row || student row)` between attention distributions, head to head.

    The rows `softmax(scaling * q k^T)` of both models are rebuilt in blocks and the gradient
    `(p_student - p_teacher) * w` with respect to the scores is applied at once, so that no T x T map outlives its
    block: memory grows with T, not with T^2, and does not depend on how many blocks are aligned.

    Args:
        student_query (`torch.Tensor` of shape `(B, H, T, D)`): queries after RoPE.
        student_key (`torch.Tensor` of shape `(B, K, T, D)`): keys after RoPE; K divides H (grouped queries).
        teacher_query, teacher_key: the same of the teacher, with H heads; its K and D may differ.
        position_weights (`torch.Tensor` of shape `(B, T)`): weight of each query row.
        student_scaling, teacher_scaling (`float`): factor on the scores, usually `D ** -0.5`.
        mask (`torch.BoolTensor` of shape `(B, 1, T, T)`, *optional*): True where a query may look. `None` is causal;
            a mask that is given must be causal too.

    Returns:
        `torch.Tensor`: a scalar in nats. Only the student's queries and keys receive a gradient.

    Raises:
        ValueError: when the numbers of heads differ.
    """
    num_heads = student_query.shape[1]
    if teacher_query.shape[1] != num_heads:
        raise ValueError(
            f"Head-to-head attention distillation needs equal numbers of heads; found {num_heads} in the student "
            f"and {teacher_query.shape[1]} in the teacher."
        )
    with torch.autocast(student_query.device.type, enabled=False):
        return _AttentionKL.apply(
            student_query.float() * student_scaling,
            _repeat_keys(student_key, num_heads).float(),
            teacher_query.detach().float() * teacher_scaling,
            _repeat_keys(teacher_key, num_heads).detach().float(),
            position_weights.float(),
            mask,
            torch.is_grad_enabled(),
        )


class LogitsLosses(NamedTuple):
    """Result of [`logits_losses`]: sums over the supervised tokens.

    Attributes:
        total: the weighted sum of both terms; the only field that carries a gradient.
        cross_entropy: sum of the negative log likelihood, in nats; 0 when its weight is 0.
        kl: sum of `temperature^2 * KL(teacher || student)`, in nats; 0 when its weight is 0.
        agreement: number of tokens whose likeliest next token is the same in both models. It is counted in
            evaluation only: 0 while gradients are on, or without a teacher.
    """

    total: torch.Tensor
    cross_entropy: torch.Tensor
    kl: torch.Tensor
    agreement: torch.Tensor


def logits_losses(
    student_hidden: torch.Tensor,
    student_head: torch.Tensor,
    targets: torch.Tensor,
    *,
    cross_entropy_weight: float,
    logits_weight: float = 0.0,
    teacher_hidden: torch.Tensor | None = None,
    teacher_head: torch.Tensor | None = None,
    temperature: float = 2.0,
    chunk_size: int = 2048,
) -> LogitsLosses:
    """Cross-entropy and forward KL on the logits (Hinton et al. 2015), through the LM heads, chunk by chunk.

    `sum_n a * CE(z^S_n, y_n) + b * tau^2 * KL(softmax(z^T_n / tau) || softmax(z^S_n / tau))`, `z = head @ hidden`.
    The factor tau^2 keeps the size of the gradient when tau changes. The gradient of a softmax against fixed targets
    is known in closed form, so it is taken in the forward pass: the logits of `chunk_size` tokens are the most that
    is ever held, for both models together.

    Args:
        student_hidden (`torch.Tensor` of shape `(N, d)`): final hidden states at the supervised positions.
        student_head (`torch.Tensor` of shape `(V, d)`): weight of the student's LM head, without bias.
        targets (`torch.LongTensor` of shape `(N,)`): the next token of each position.
        cross_entropy_weight, logits_weight (`float`): a and b. A term of weight 0 is not computed.
        teacher_hidden, teacher_head: the same of the teacher, whose d may differ; needed when b is not 0.
        temperature (`float`, defaults to 2.0): tau.
        chunk_size (`int`, defaults to 2048): tokens per chunk.

    Returns:
        [`LogitsLosses`]
    """
    total, sums = _LogitsLosses.apply(
        student_hidden,
        student_head,
        targets,
        teacher_hidden if logits_weight else None,
        teacher_head if logits_weight else None,
        cross_entropy_weight,
        logits_weight,
        temperature,
        chunk_size,
        torch.is_grad_enabled(),
    )
    return LogitsLosses(total, *sums.unbind())


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
    """What the rows of a block may not look at: `(rows, stop)` for a causal model, `(b * heads, rows, stop)` else."""
    if mask is None:
        return torch.ones(stop - start, stop - start, dtype=torch.bool, device=device).triu(1)
    forbidden = ~mask[batch, :, start:stop, :stop]
    return forbidden.expand(-1, heads, -1, -1).flatten(0, 1)


def _scores(query, key, forbidden, start):
    """Attention scores of the rows `start ...` over the keys up to the last of them."""
    scores = torch.bmm(query, key.transpose(1, 2))
    # The lowest number instead of -inf: a row of padding that may look nowhere then stays finite.
    lowest = torch.finfo(scores.dtype).min
    if forbidden.dim() == 2:
        scores[..., start:].masked_fill_(forbidden, lowest)
    else:
        scores.masked_fill_(forbidden, lowest)
    return scores


def _log_sum_exp(scores, probabilities):
    """Log of the softmax's denominator, read off the likeliest key instead of a second pass of exponentials."""
    return scores.amax(-1) - probabilities.amax(-1).log()


def _repeat_keys(key: torch.Tensor, num_heads: int) -> torch.Tensor:
    return key if key.shape[1] == num_heads else key.repeat_interleave(num_heads // key.shape[1], dim=1)


class _LogitsLosses(torch.autograd.Function):
    """Chunked cross-entropy and KL; the gradients of hidden states and head are taken in the forward pass."""

    @staticmethod
    def forward(
        ctx,
        hidden,
        head,
        targets,
        teacher_hidden,
        teacher_head,
        cross_entropy_weight,
        logits_weight,
        temperature,
        chunk_size,
        with_gradient,
    ):
        ctx.dtypes = hidden.dtype, head.dtype
        hidden_needed, head_needed = (needed and with_gradient for needed in ctx.needs_input_grad[:2])
        head, teacher_head = _in_matmul_dtype(head), _in_matmul_dtype(teacher_head)
        hidden_gradient = torch.empty_like(hidden, dtype=torch.float32) if hidden_needed else None
        head_gradient = torch.zeros_like(head, dtype=torch.float32) if head_needed else None
        sums = torch.zeros(3, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], chunk_size):
                rows = slice(start, start + chunk_size)
                chunk = hidden[rows].to(head.dtype)
                teacher_logits = None
                if teacher_head is not None:
                    teacher_logits = F.linear(teacher_hidden[rows].to(teacher_head.dtype), teacher_head).float()
                gradient = _add_chunk_losses(
                    sums,
                    F.linear(chunk, head).float(),
                    teacher_logits,
                    targets[rows],
                    (cross_entropy_weight, logits_weight, temperature),
                    with_gradient,
                )
                if hidden_needed:
                    hidden_gradient[rows] = gradient.to(head.dtype) @ head
                if head_needed:
                    _accumulate_product(head_gradient, gradient.to(head.dtype).t(), chunk)
        ctx.save_for_backward(hidden_gradient, head_gradient)
        ctx.mark_non_differentiable(sums)
        return cross_entropy_weight * sums[0] + logits_weight * sums[1], sums

    @staticmethod
    def backward(ctx, total_gradient, _):
        gradients = tuple(
            None if gradient is None else (gradient * total_gradient).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *gradients, None, None, None, None, None, None, None, None


def _in_matmul_dtype(head: torch.Tensor | None) -> torch.Tensor | None:
    """Cast an LM head as autocast would: once for all chunks instead of once per product."""
    if head is None or not torch.is_autocast_enabled(head.device.type):
        return head
    return head.to(torch.get_autocast_dtype(head.device.type))


def _accumulate_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """`total += left @ right`, without a temporary of the size of the LM head where the dtypes allow it."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _add_chunk_losses(sums, logits, teacher_logits, targets, settings, with_gradient):
    """Add the chunk's cross-entropy, KL and agreement to `sums`; return the gradient of their weighted sum."""
    cross_entropy_weight, logits_weight, temperature = settings
    gradient = None
    if cross_entropy_weight:
        log_probabilities = logits.log_softmax(-1)
        sums[0] -= log_probabilities.gather(1, targets[:, None]).sum()
        if with_gradient:
            gradient = log_probabilities.exp_().mul_(cross_entropy_weight)
            gradient.scatter_add_(1, targets[:, None], gradient.new_full((len(targets), 1), -cross_entropy_weight))
    if teacher_logits is not None:
        if not with_gradient:
            sums[2] += (logits.argmax(-1) == teacher_logits.argmax(-1)).sum()
        log_student = logits.div_(temperature).log_softmax(-1)
        log_teacher = teacher_logits.div_(temperature).log_softmax(-1)
        teacher = log_teacher.exp()
        sums[1] += temperature**2 * log_teacher.sub_(log_student).mul_(teacher).sum()
        if with_gradient:
            difference = log_student.exp_().sub_(teacher).mul_(logits_weight * temperature)
            gradient = difference if gradient is None else gradient.add_(difference)
    return gradient
