"""Distillation from a teacher distribution of which only some probabilities and the sum of the others are known.

Shapes: n tokens, k known ids, V vocabulary. tau is the temperature that both distributions are softened with.
"""

from typing import NamedTuple

import torch


class KnownProbabilities(NamedTuple):
    """The known part of the teacher distribution `softmax(teacher logits / tau)`.

    Attributes:
        ids (`torch.LongTensor` of shape `(n, k)`): the known ids, different in each row.
        log_probabilities (`torch.Tensor` of shape `(n, k)`): in nats.
        log_tail (`torch.Tensor` of shape `(n,)`): logarithm of the probability of all other ids together.
    """

    ids: torch.Tensor
    log_probabilities: torch.Tensor
    log_tail: torch.Tensor


def known_probabilities(teacher_logits: torch.Tensor, ids: torch.Tensor, temperature: float) -> KnownProbabilities:
    """Return the probabilities of some ids under a teacher, and the sum of the others.

    Args:
        teacher_logits (`torch.Tensor` of shape `(n, V)`): logits of the teacher.
        ids (`torch.LongTensor` of shape `(n, k)`): ids to keep, for example the indices of `topk`; k < V.
        temperature (`float`): tau.

    Returns:
        [`KnownProbabilities`].
    """
    scores = teacher_logits / temperature
    log_total = scores.logsumexp(-1)
    # Computed from the logits of the tail: 1 - sum(p) would be a rounding error if the teacher is confident.
    log_tail = _without(scores, ids).logsumexp(-1) - log_total
    return KnownProbabilities(ids, scores.gather(1, ids) - log_total[:, None], log_tail)


def partial_kl(student_logits: torch.Tensor, known: KnownProbabilities, temperature: float) -> torch.Tensor:
    """Compute the forward KL over the known ids and the tail, times `tau^2`.

    The loss is `tau^2 * (sum_k p_k log(p_k / q_k) + p_tail log(p_tail / q_tail))`, where p is the teacher's softened
    distribution and q the student's. Merging outcomes never increases a divergence, so the loss is at most the KL over
    the whole vocabulary. The difference is `tau^2 * p_tail * KL`, with the KL inside the tail.

    Args:
        student_logits (`torch.Tensor` of shape `(n, V)`): receives the gradient.
        known ([`KnownProbabilities`]): of the teacher, at the same temperature.
        temperature (`float`): tau.

    Returns:
        `torch.Tensor` of shape `(n,)`, in nats.
    """
    scores = student_logits / temperature
    log_total = scores.logsumexp(-1)
    log_student = scores.gather(1, known.ids) - log_total[:, None]
    log_student_tail = _without(scores, known.ids).logsumexp(-1) - log_total
    kl = (known.log_probabilities.exp() * (known.log_probabilities - log_student)).sum(-1)
    return temperature**2 * (kl + known.log_tail.exp() * (known.log_tail - log_student_tail))


def completed_logits(student_logits: torch.Tensor, known: KnownProbabilities, temperature: float) -> torch.Tensor:
    """Return teacher logits in which the tail probability is distributed as in the student's own tail.

    Inside the tail both models then agree. At the same temperature, every divergence between these logits and the
    student's, and its gradient with respect to the student, is therefore that of the known ids and the tail as a
    single outcome. The forward KL is [`partial_kl`].

    Args:
        student_logits (`torch.Tensor` of shape `(n, V)`): logits of the student; not changed.
        known ([`KnownProbabilities`]): known part of the teacher's distribution.
        temperature (`float`): tau.

    Returns:
        `torch.Tensor` of shape `(n, V)`.
    """
    tail = _without(student_logits / temperature, known.ids)
    tail += (known.log_tail - tail.logsumexp(-1))[:, None]
    return tail.scatter_(1, known.ids, known.log_probabilities).mul_(temperature)


def _without(scores: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return scores.scatter(1, ids, float("-inf"))
