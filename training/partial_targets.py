"""Distillation from a teacher that tells the probabilities of some ids and only the sum of the others.

Shapes: n tokens, k known ids, V vocabulary. tau is the temperature that both distributions are softened with.
"""

from typing import NamedTuple

import torch


class KnownProbabilities(NamedTuple):
    """What is known of `softmax(teacher logits / tau)`.

    Attributes:
        ids (`torch.LongTensor` of shape `(n, k)`): the known ids, different in each row.
        log_probabilities (`torch.Tensor` of shape `(n, k)`): in nats.
        log_tail (`torch.Tensor` of shape `(n,)`): logarithm of the probability of all other ids together.
    """

    ids: torch.Tensor
    log_probabilities: torch.Tensor
    log_tail: torch.Tensor


def known_probabilities(teacher_logits: torch.Tensor, ids: torch.Tensor, temperature: float) -> KnownProbabilities:
    """Keep some ids of a teacher's distribution.

    Args:
        teacher_logits (`torch.Tensor` of shape `(n, V)`).
        ids (`torch.LongTensor` of shape `(n, k)`): what is kept, for example the indices of `topk`; k < V.
        temperature (`float`): tau.
    """
    scores = teacher_logits / temperature
    log_total = scores.logsumexp(-1)
    # From the logits of the tail itself: 1 - sum(p) would be rounding error wherever the teacher is sure.
    log_tail = _without(scores, ids).logsumexp(-1) - log_total
    return KnownProbabilities(ids, scores.gather(1, ids) - log_total[:, None], log_tail)


def partial_kl(student_logits: torch.Tensor, known: KnownProbabilities, temperature: float) -> torch.Tensor:
    """`tau^2 * (sum_k p_k log(p_k / q_k) + p_tail log(p_tail / q_tail))`: forward KL over the known ids and the tail.

    p is the teacher's softened distribution and q the student's. Joining outcomes never makes a divergence larger, so
    this is at most the KL over the whole vocabulary; what is missing is `tau^2 * p_tail * KL` inside the tail.

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
    """Teacher logits whose tail is spread as the student spreads its own.

    Softened with the same temperature, every divergence from them and its gradient with respect to the student are
    those of the known ids and the tail as one outcome: inside the tail both models agree. The forward KL is
    [`partial_kl`].

    Args:
        student_logits (`torch.Tensor` of shape `(n, V)`): not changed.
        known ([`KnownProbabilities`]), temperature (`float`): of the teacher.

    Returns:
        `torch.Tensor` of shape `(n, V)`.
    """
    tail = _without(student_logits / temperature, known.ids)
    tail += (known.log_tail - tail.logsumexp(-1))[:, None]
    return tail.scatter_(1, known.ids, known.log_probabilities).mul_(temperature)


def _without(scores: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return scores.scatter(1, ids, float("-inf"))
