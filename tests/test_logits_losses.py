"""The logits losses against full softmaxes in double precision, with tokens that differ in all that may differ."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tinywave.training.logits_losses import DIVERGENCES, HeadLogits, LogitsSettings, logits_losses

VOCABULARY = 37


def heads_and_targets(num_tokens=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden, teacher_hidden = (torch.randn(num_tokens, width, generator=generator) for width in (12, 20))
    head, teacher_head = (torch.randn(VOCABULARY, width, generator=generator) / 2 for width in (12, 20))
    targets = torch.randint(VOCABULARY, (num_tokens,), generator=generator)
    return hidden, head, targets, teacher_hidden, teacher_head


def kl(first, second):
    """KL between two distributions that may have zeros in the same places."""
    return torch.where(first > 0, first * (first.clamp(min=1e-300) / second.clamp(min=1e-300)).log(), 0.0).sum()


def distance(divergence, student, teacher, beta):
    if divergence == "forward_kl":
        return kl(teacher, student)
    if divergence == "reverse_kl":
        return kl(student, teacher)
    mixture = beta * teacher + (1 - beta) * student
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


def reference_losses(hidden, head, targets, teacher_hidden, teacher_head, settings, temperatures, weights, ranges):
    """Both sums, token by token, from probabilities."""
    cross_entropy = divergence = torch.zeros((), dtype=torch.float64)
    for n, target in enumerate(targets.tolist()):
        logits, teacher_logits = head.double() @ hidden[n].double(), teacher_head.double() @ teacher_hidden[n].double()
        cross_entropy = cross_entropy - weights[n] * (logits.exp() / logits.exp().sum())[target].log()
        ids = slice(*ranges[n])
        student, teacher = (
            (scores[ids] / temperatures[n]).exp() / (scores[ids] / temperatures[n]).exp().sum()
            for scores in (logits, teacher_logits)
        )
        value = distance(settings.divergence, student, teacher, settings.jsd_beta)
        divergence = divergence + weights[n] * temperatures[n] ** 2 * value
    return cross_entropy, divergence


def check(settings, temperatures=None, weights=None, ranges=None):
    """Values and gradients of `logits_losses` against the reference."""
    hidden, head, targets, teacher_hidden, teacher_head = heads_and_targets()
    count = len(targets)
    hidden.requires_grad_(), head.requires_grad_()
    tensor_options = {}
    if isinstance(temperatures, list):
        tensor_options["temperature"] = torch.tensor(temperatures)
    elif temperatures is not None:
        tensor_options["temperature"] = temperatures
    if weights is not None:
        tensor_options["token_weights"] = torch.tensor(weights)
    if ranges is not None:
        tensor_options["allowed_ids"] = tuple(torch.tensor(ranges).unbind(1))
    result = logits_losses(
        hidden, head, targets, settings, teacher_logits=HeadLogits(teacher_hidden, teacher_head), **tensor_options
    )
    (0.5 * result.total).backward()
    doubles = [tensor.detach().double().requires_grad_() for tensor in (hidden, head)]
    terms = reference_losses(
        *doubles, targets, teacher_hidden, teacher_head, settings,
        temperatures if isinstance(temperatures, list) else [2.0 if temperatures is None else temperatures] * count,
        [1.0] * count if weights is None else weights,
        [(0, VOCABULARY)] * count if ranges is None else ranges,
    )  # fmt: skip
    total = settings.cross_entropy_weight * terms[0] + settings.logits_weight * terms[1]
    (0.5 * total).backward()
    torch.testing.assert_close(result.total.detach().double(), total.detach(), rtol=1e-6, atol=0)
    enabled = settings.cross_entropy_weight > 0, settings.logits_weight > 0
    for found, expected, on in zip((result.cross_entropy, result.divergence), terms, enabled, strict=True):
        torch.testing.assert_close(found.double(), expected.detach() * on, rtol=1e-6, atol=0)
        assert not found.requires_grad
    for tensor, double in zip((hidden, head), doubles, strict=True):
        torch.testing.assert_close(tensor.grad.double(), double.grad, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("chunk_size", [7, None])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 0.7), (1.3, 0.0)])
def test_logits_losses_and_their_gradient_match_the_full_softmax(divergence, temperature, chunk_size, weights):
    check(LogitsSettings(*weights, divergence, 0.3, chunk_size), temperature)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_every_token_may_have_its_own_weight_temperature_and_ids(divergence):
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(50, generator=generator).tolist()
    temperatures = (0.5 + 2 * torch.rand(50, generator=generator)).tolist()
    ranges = [(0, 10), (10, 30), (5, 37), (0, VOCABULARY), (36, 37)] * 10
    check(LogitsSettings(0.7, 1.2, divergence, 0.8, 7), temperatures, weights, ranges)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradients_by_finite_differences(divergence):
    generator = torch.Generator().manual_seed(0)
    hidden, head, teacher_hidden, teacher_head = (
        torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((5, 3), (7, 3), (5, 4), (7, 4))
    )
    targets = torch.tensor([0, 3, 6, 2, 2])
    settings = LogitsSettings(0.6, 1.1, divergence, 0.3, 2)
    options = dict(temperature=torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5]), token_weights=torch.rand(5),
                   allowed_ids=(torch.tensor([0, 0, 2, 0, 1]), torch.tensor([7, 4, 7, 7, 3])))  # fmt: skip

    def total(hidden, head):
        teacher = HeadLogits(teacher_hidden, teacher_head)
        return logits_losses(hidden, head, targets, settings, teacher_logits=teacher, **options).total

    # gradcheck takes each gradient twice, the loss gives it once: the checkpoint computes it again for each.
    inputs = hidden.requires_grad_(), head.requires_grad_()
    assert torch.autograd.gradcheck(lambda *tensors: checkpoint(total, *tensors, use_reentrant=False), inputs)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_equal_models_have_no_distance_and_agree(divergence):
    hidden, head, targets, *_ = heads_and_targets()
    with torch.no_grad():
        result = logits_losses(hidden, head, targets, LogitsSettings(1.0, 1.0, divergence),
                               teacher_logits=HeadLogits(hidden, head))  # fmt: skip
    assert result.divergence.abs() < 1e-5
    assert result.agreement == len(targets)


def test_agreement_counts_equal_likeliest_tokens():
    hidden, head, targets, teacher_hidden, teacher_head = heads_and_targets()
    with torch.no_grad():
        result = logits_losses(hidden, head, targets, LogitsSettings(1.0, 1.0),
                               teacher_logits=HeadLogits(teacher_hidden, teacher_head))  # fmt: skip
    expected = ((hidden @ head.T).argmax(-1) == (teacher_hidden @ teacher_head.T).argmax(-1)).sum()
    assert 0 < expected < len(targets)
    assert result.agreement == expected


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_tail_shaped_by_the_student_is_one_outcome(divergence):
    """A teacher that knows its 5 likeliest ids and the mass of the rest counts as 6 outcomes, gradient included."""
    hidden, head, targets, teacher_hidden, teacher_head = heads_and_targets()
    known, ids = (teacher_hidden @ teacher_head.T).log_softmax(-1).topk(5)
    tail = torch.log1p(-known.exp().sum(-1, keepdim=True))

    def fill_in(rows, student_logits):
        is_tail = torch.ones_like(student_logits, dtype=torch.bool).scatter_(1, ids[rows], False)
        shape = student_logits.masked_fill(~is_tail, float("-inf")).log_softmax(-1)
        return (shape + tail[rows]).scatter(1, ids[rows], known[rows])

    hidden.requires_grad_()
    settings = LogitsSettings(0.0, 1.0, divergence, 0.3, 16)
    result = logits_losses(hidden, head, targets, settings, teacher_logits=fill_in, temperature=1.0)
    result.total.backward()
    double = hidden.detach().double().requires_grad_()
    expected = torch.zeros((), dtype=torch.float64)
    for n in range(len(targets)):
        student = (head.double() @ double[n]).softmax(-1)
        lumped = torch.cat([student[ids[n]], 1 - student[ids[n]].sum()[None]])
        teacher = torch.cat([known[n], tail[n]]).double().exp()
        expected = expected + distance(divergence, lumped, teacher, 0.3)
    expected.backward()
    torch.testing.assert_close(result.divergence.double(), expected.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(hidden.grad.double(), double.grad, rtol=1e-4, atol=1e-5)


def test_a_frozen_head_gets_no_gradient():
    hidden, head, targets, *_ = heads_and_targets()
    hidden.requires_grad_()
    logits_losses(hidden, head, targets, LogitsSettings(1.0)).total.backward()
    assert head.grad is None
    assert hidden.grad.abs().sum() > 0


def test_the_default_chunk_bounds_the_logits_that_are_held():
    """The largest piece of logits of 600 tokens over 32,768 ids is 256 tokens: 32 MB of fp32."""
    seen = []

    def teacher_logits(rows, student_logits):
        seen.append(student_logits.shape)
        return student_logits.clone()

    hidden, head = torch.zeros(600, 2), torch.zeros(32768, 2)
    with torch.no_grad():
        logits_losses(hidden, head, torch.zeros(600, dtype=torch.long), LogitsSettings(0.0, 1.0),
                      teacher_logits=teacher_logits)  # fmt: skip
    assert seen == [(256, 32768), (256, 32768), (88, 32768)]
