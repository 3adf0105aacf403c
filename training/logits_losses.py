"""Cross-entropy and logit distillation, computed from hidden states and LM heads in chunks of tokens.

Shapes: N = supervised tokens, n = tokens of one chunk, d hidden size, V vocabulary. Losses and gradients are computed
in fp32 or higher precision; the product with the LM head is computed in the dtype of the head. Every loss is a sum
over tokens.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .losses import at_least_float32

# `teacher_logits(rows, student_logits)` returns the teacher's logits of shape `(n, V)` for the tokens `rows`, a slice
# of the N tokens. It may read, but not modify, the student's logits of the same tokens. The caller overwrites its
# result.
TeacherLogits = Callable[[slice, torch.Tensor], torch.Tensor]

# Upper limit of the logits of one model in memory: 32 MB of fp32 on a CPU, 256 MB on an accelerator.
_CPU_CHUNK_ELEMENTS, _GPU_CHUNK_ELEMENTS = 2**23, 2**26
_MAX_CHUNK_TOKENS = 2048


class LogitsLosses(NamedTuple):
    """Result of [`logits_losses`]: sums over the supervised tokens, each a scalar tensor.

    Attributes:
        total: weighted sum of both terms; the only field with a gradient.
        cross_entropy: sum of `w_n` times the negative log-likelihood, in nats; 0 if the term is disabled.
        divergence: sum of `w_n * tau_n^2 * D_n`, in nats; 0 if the term is disabled.
        agreement: number of positions at which both models predict the same most likely next token. It is counted in
            evaluation only, and is 0 while gradients are enabled or without a teacher.
    """

    total: torch.Tensor
    cross_entropy: torch.Tensor
    divergence: torch.Tensor
    agreement: torch.Tensor


class HeadLogits:
    """[`TeacherLogits`] that are computed from hidden states and an LM head, one chunk at a time.

    Args:
        hidden (`torch.Tensor` of shape `(N, d)`): final hidden states at the supervised positions.
        head (`torch.Tensor` of shape `(V, d)`): weight of the LM head, without bias.
    """

    def __init__(self, hidden: torch.Tensor, head: torch.Tensor):
        self.hidden = hidden
        self.head = _in_matmul_dtype(head)

    def __call__(self, rows: slice, student_logits: torch.Tensor) -> torch.Tensor:
        return at_least_float32(F.linear(self.hidden[rows].to(self.head.dtype), self.head))


def forward_kl(log_student: torch.Tensor, log_teacher: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the forward divergence `KL(t || s) = sum_v t_v log(t_v / s_v)` (Hinton et al. 2015).

    It is mode-covering: the student is penalized wherever the teacher has probability and the student has none.

    Args:
        log_student, log_teacher (`torch.Tensor` of shape `(n, V)`): log-probabilities. Both are overwritten.
        beta (`float`): not used by this divergence.

    Returns:
        `tuple`: the divergence of each row, of shape `(n,)`, in nats, and its gradient `s - t` with respect to the
        student's logits, of shape `(n, V)`.
    """
    teacher = log_teacher.exp()
    values = log_teacher.sub_(log_student).mul_(teacher).sum(-1)
    return values, log_student.exp_().sub_(teacher)


def reverse_kl(log_student: torch.Tensor, log_teacher: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the reverse divergence `KL(s || t)` (MiniLLM, arXiv 2306.08543, equation 1).

    It is mode-seeking: the student concentrates on the most likely modes of the teacher. The arguments and the result
    are those of [`forward_kl`]; the gradient is `s * (log(s / t) - KL)`.
    """
    student = log_student.exp()
    ratio = log_student.sub_(log_teacher)
    values = (ratio * student).sum(-1)
    return values, ratio.sub_(values[:, None]).mul_(student)


def generalised_jsd(
    log_student: torch.Tensor, log_teacher: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the generalized Jensen-Shannon divergence (GKD, arXiv 2306.13649, equation 1).

    It is `beta KL(t || m) + (1 - beta) KL(s || m)` with `m = beta t + (1 - beta) s` and `0 < beta < 1`, and is at most
    log 2. As beta approaches 0 it approaches `beta * forward_kl`, as beta approaches 1 `(1 - beta) * reverse_kl`. The
    arguments and the result are those of [`forward_kl`]; the gradient is `(1 - beta) s * (log(s / m) - KL(s || m))`.
    """
    log_mixture = torch.logaddexp(log_teacher + math.log(beta), log_student + math.log1p(-beta))
    teacher, student = log_teacher.exp(), log_student.exp()
    teacher_kl = log_teacher.sub_(log_mixture).mul_(teacher).sum(-1)
    ratio = log_student.sub_(log_mixture)
    student_kl = (ratio * student).sum(-1)
    gradient = ratio.sub_(student_kl[:, None]).mul_(student).mul_(1.0 - beta)
    return beta * teacher_kl + (1.0 - beta) * student_kl, gradient


DIVERGENCES = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jsd": generalised_jsd}


class LogitsSettings(NamedTuple):
    """Settings of [`logits_losses`].

    Attributes:
        cross_entropy_weight, logits_weight (`float`): weights a and b of the two terms. A term of weight 0 is not
            computed.
        divergence (`str`, defaults to `"forward_kl"`): "forward_kl", "reverse_kl" or "jsd".
        jsd_beta (`float`, defaults to 0.5): weight of the teacher in the mixture of "jsd".
        chunk_size (`int`, *optional*): tokens per chunk. The default keeps the logits of one model below 32 MB on a
            CPU and 256 MB on an accelerator, and is at most 2048.
    """

    cross_entropy_weight: float
    logits_weight: float = 0.0
    divergence: str = "forward_kl"
    jsd_beta: float = 0.5
    chunk_size: int | None = None


def logits_losses(
    student_hidden: torch.Tensor,
    student_head: torch.Tensor,
    targets: torch.Tensor,
    settings: LogitsSettings,
    *,
    teacher_logits: TeacherLogits | None = None,
    temperature: float | torch.Tensor = 2.0,
    token_weights: torch.Tensor | None = None,
    allowed_ids: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> LogitsLosses:
    """Compute the weighted sum of cross-entropy and logit distillation over the supervised tokens.

    The loss is `sum_n w_n * (a * CE(z^S_n, y_n) + b * tau_n^2 * D(softmax(z^T_n / tau_n), softmax(z^S_n / tau_n)))`,
    where `z = head @ hidden` and D is `forward_kl`, `reverse_kl` or `generalised_jsd`. The factor tau^2 keeps the
    scale of the gradient independent of tau (Hinton et al. 2015, section 2). The gradients have closed forms and are
    computed in the forward pass, so that only the logits of one chunk are in memory at a time.

    Args:
        student_hidden (`torch.Tensor` of shape `(N, d)`): final hidden states at the supervised positions.
        student_head (`torch.Tensor` of shape `(V, d)`): weight of the student's LM head, without bias.
        targets (`torch.LongTensor` of shape `(N,)`): the next token of each position.
        settings ([`LogitsSettings`]): weights a and b, the divergence and the chunk size.
        teacher_logits ([`TeacherLogits`], *optional*): required if b is not 0.
        temperature (`float` or `torch.Tensor` of shape `(N,)`, defaults to 2.0): tau.
        token_weights (`torch.Tensor` of shape `(N,)`, *optional*): weights w; by default 1.
        allowed_ids (two `torch.LongTensor` of shape `(N,)`, *optional*): for each token, the first id and one past the
            last id of the range over which the divergence is computed; both distributions are renormalized over it.
            By default the whole vocabulary. The cross-entropy always covers the whole vocabulary.

    Returns:
        [`LogitsLosses`]: the hidden states and the student's head receive a gradient, the teacher does not.
        `backward` can be called once only, because it scales the stored gradient in place.
    """
    if not (settings.cross_entropy_weight or settings.logits_weight):
        return LogitsLosses(*torch.zeros(4, device=student_hidden.device).unbind())
    total, sums = _LogitsLosses.apply(
        student_hidden,
        student_head,
        targets,
        settings,
        teacher_logits if settings.logits_weight else None,
        _TokenSettings(temperature, token_weights, allowed_ids),
        torch.is_grad_enabled(),
    )
    return LogitsLosses(total, *sums.unbind())


class _TokenSettings(NamedTuple):
    """Settings per token; the fields are described in [`logits_losses`]."""

    temperature: float | torch.Tensor
    weights: torch.Tensor | None
    allowed_ids: tuple[torch.Tensor, torch.Tensor] | None

    def chunk(self, rows: slice) -> "_TokenSettings":
        """Return the settings of some tokens as columns that broadcast over the vocabulary."""
        temperature = self.temperature
        if isinstance(temperature, torch.Tensor):
            temperature = temperature[rows, None]
        weights = None if self.weights is None else self.weights[rows, None]
        allowed = None if self.allowed_ids is None else tuple(bound[rows, None] for bound in self.allowed_ids)
        return _TokenSettings(temperature, weights, allowed)

    def forbidden(self, vocabulary_size: int) -> torch.Tensor | None:
        """Return the mask of shape `(n, V)` of the ids outside the divergence, or None if it covers all ids."""
        if self.allowed_ids is None:
            return None
        first, stop = self.allowed_ids
        ids = torch.arange(vocabulary_size, device=first.device)
        return (ids < first) | (ids >= stop)


class _LogitsLosses(torch.autograd.Function):
    """Chunked cross-entropy and divergence; the forward pass computes the gradients of hidden states and head too."""

    @staticmethod
    def forward(ctx, hidden, head, targets, settings, teacher_logits, token_settings, with_gradient):
        ctx.dtypes = hidden.dtype, head.dtype
        hidden_needed, head_needed = (needed and with_gradient for needed in ctx.needs_input_grad[:2])
        head = _in_matmul_dtype(head)
        dtype = torch.promote_types(head.dtype, torch.float32)
        hidden_gradient = torch.empty_like(hidden, dtype=dtype) if hidden_needed else None
        head_gradient = torch.zeros_like(head, dtype=dtype) if head_needed else None
        sums = torch.zeros(3, device=hidden.device, dtype=dtype)
        chunk_size = settings.chunk_size or _default_chunk_size(head)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], chunk_size):
                rows = slice(start, start + chunk_size)
                chunk = hidden[rows].to(head.dtype)
                logits = at_least_float32(F.linear(chunk, head))
                wanted = None if teacher_logits is None else teacher_logits(rows, logits)
                gradient = _add_chunk_losses(
                    sums, logits, wanted, targets[rows], settings, token_settings.chunk(rows), with_gradient
                )
                if hidden_needed:
                    hidden_gradient[rows] = gradient.to(head.dtype) @ head
                if head_needed:
                    _accumulate_product(head_gradient, gradient.to(head.dtype).t(), chunk)
        ctx.save_for_backward(hidden_gradient, head_gradient)
        ctx.mark_non_differentiable(sums)
        return settings.cross_entropy_weight * sums[0] + settings.logits_weight * sums[1], sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, total_gradient, _):
        # In place: the gradient of the head is as large as the head, and a copy would be the peak of the whole step.
        gradients = tuple(
            None if gradient is None else gradient.mul_(total_gradient).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *gradients, None, None, None, None, None


def _default_chunk_size(head: torch.Tensor) -> int:
    limit = _CPU_CHUNK_ELEMENTS if head.device.type == "cpu" else _GPU_CHUNK_ELEMENTS
    return max(1, min(_MAX_CHUNK_TOKENS, limit // head.shape[0]))


def _in_matmul_dtype(head: torch.Tensor) -> torch.Tensor:
    """Cast an LM head as autocast does, but once for all chunks instead of once per product."""
    if not torch.is_autocast_enabled(head.device.type):
        return head
    return head.to(torch.get_autocast_dtype(head.device.type))


def _accumulate_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """`total += left @ right`, without a temporary of the size of the LM head where the dtypes allow it."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _add_chunk_losses(sums, logits, teacher_logits, targets, settings, token_settings, with_gradient):
    """Add the chunk's cross-entropy, divergence and agreement to `sums`; return the gradient of the weighted sum."""
    gradient = None
    if settings.cross_entropy_weight:
        gradient = _add_cross_entropy(sums, logits, targets, settings.cross_entropy_weight, token_settings.weights)
    if teacher_logits is not None:
        if not with_gradient:
            sums[2] += (logits.argmax(-1) == teacher_logits.argmax(-1)).sum()
        difference = _add_divergence(sums, logits, teacher_logits, settings, token_settings)
        gradient = difference if gradient is None else gradient.add_(difference)
    if gradient is not None and token_settings.weights is not None:
        gradient.mul_(token_settings.weights)
    return gradient


def _add_cross_entropy(sums, logits, targets, weight, token_weights):
    """Add the cross-entropy of a chunk; return the gradient of `weight` times it, before the weights of tokens."""
    log_probabilities = logits.log_softmax(-1)
    log_likelihood = log_probabilities.gather(1, targets[:, None])
    sums[0] -= (log_likelihood if token_weights is None else log_likelihood * token_weights).sum()
    gradient = log_probabilities.exp_().mul_(weight)
    return gradient.scatter_add_(1, targets[:, None], gradient.new_full((len(targets), 1), -weight))


def _add_divergence(sums, logits, teacher_logits, settings, token_settings):
    """Add `tau^2 D` of a chunk, overwriting both logits; return the gradient of `logits_weight` times it."""
    temperature = token_settings.temperature
    forbidden = token_settings.forbidden(logits.shape[-1])
    for scores in (logits.div_(temperature), teacher_logits.div_(temperature)):
        if forbidden is not None:
            # The lowest number instead of -inf: 0 * (-inf - -inf) would be NaN.
            scores.masked_fill_(forbidden, torch.finfo(scores.dtype).min)
    divergence = DIVERGENCES[settings.divergence]
    values, gradient = divergence(logits.log_softmax(-1), teacher_logits.log_softmax(-1), settings.jsd_beta)
    values = temperature**2 * values[:, None]
    sums[1] += (values if token_settings.weights is None else values * token_settings.weights).sum()
    return gradient.mul_(settings.logits_weight * temperature)
