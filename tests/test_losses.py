"""Every loss against the textbook formula in double precision, with full maps and full softmaxes."""

import pytest
import torch

from tinywave.training import losses
from tinywave.training.losses import (
    attention_kl,
    cosine_hidden_loss,
    logits_losses,
    mse_hidden_loss,
    supervised_positions,
)

BATCH, LENGTH, HEADS, HEAD_DIM = 3, 70, 4, 8


def reference_attention_kl(student_query, student_key, teacher_query, teacher_key, weights, allowed, scalings):
    """KL between full attention maps, by the definition of the softmax."""
    maps = []
    for query, key, scaling in (
        (student_query, student_key, scalings[0]),
        (teacher_query, teacher_key, scalings[1]),
    ):
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores = torch.einsum("bhqd,bhkd->bhqk", query.double(), key.double()) * scaling
        exponentials = scores.exp() * allowed
        # A query of padding may look nowhere: its row is empty, and its weight is 0.
        maps.append(exponentials / exponentials.sum(-1, keepdim=True).clamp(min=1e-300))
    student_map, teacher_map = maps
    logs = [torch.where(allowed, a_map, 1.0).log() for a_map in (teacher_map, student_map)]
    kl = (teacher_map * (logs[0] - logs[1])).sum(-1)
    return (kl * weights[:, None].double()).sum() / student_query.shape[1]


def padded(side):
    """Attention mask and allowed pairs of a batch padded on one side (rows of 70, 51 and 23 tokens)."""
    tokens = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    for row, length in enumerate((LENGTH, 51, 23)):
        tokens[row, slice(0, length) if side == "right" else slice(LENGTH - length, None)] = True
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    return tokens, (causal & tokens[:, None, None, :])


def queries_and_keys(key_heads=HEADS, head_dim=HEAD_DIM, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query = 2 * torch.randn(BATCH, HEADS, LENGTH, head_dim, generator=generator)
    return query, 2 * torch.randn(BATCH, key_heads, LENGTH, head_dim, generator=generator)


@pytest.mark.parametrize("side", ["none", "right", "right-unmasked", "left"])
@pytest.mark.parametrize("key_heads", [HEADS, 2])
def test_attention_kl_and_its_gradient_match_full_maps(side, key_heads):
    tokens, allowed = padded("left" if side == "left" else "right")
    if side == "none":
        tokens, allowed = torch.ones_like(tokens), torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()[None, None]
    weights = tokens.float()
    student = [tensor.requires_grad_() for tensor in queries_and_keys(key_heads)]
    teacher = queries_and_keys(head_dim=16, seed=1)
    scalings = (HEAD_DIM**-0.5, 16**-0.5)
    loss = attention_kl(
        *student,
        *teacher,
        weights,
        student_scaling=scalings[0],
        teacher_scaling=scalings[1],
        mask=allowed if side in ("left", "right") else None,
    )
    (3 * loss).backward()
    doubles = [tensor.detach().double().requires_grad_() for tensor in student]
    expected = reference_attention_kl(*doubles, *teacher, weights, allowed, scalings)
    (3 * expected).backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    for tensor, double in zip(student, doubles, strict=True):
        torch.testing.assert_close(tensor.grad.double(), double.grad, rtol=1e-5, atol=1e-6)


def test_attention_kl_does_not_depend_on_its_blocks(monkeypatch):
    student, teacher = queries_and_keys(), queries_and_keys(seed=1)
    weights = torch.rand(BATCH, LENGTH)
    values = []
    for block in [(70, 2**24), (7, 1), (32, 2**12)]:
        monkeypatch.setattr(losses, "_CPU_ATTENTION_BLOCK", block)
        values.append(attention_kl(*student, *teacher, weights, student_scaling=0.3, teacher_scaling=0.3))
    torch.testing.assert_close(values[1:], values[:1] * 2, rtol=1e-6, atol=0)


def test_attention_kl_survives_bf16_autocast():
    student, teacher = queries_and_keys(), queries_and_keys(seed=1)
    settings = dict(student_scaling=0.3, teacher_scaling=0.3)
    weights = torch.ones(BATCH, LENGTH)
    plain = attention_kl(*student, *teacher, weights, **settings)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(attention_kl(*student, *teacher, weights, **settings), plain, rtol=0, atol=0)


def test_attention_kl_refuses_other_head_counts():
    query, key = queries_and_keys()
    with pytest.raises(ValueError, match="4 in the student and 2 in the teacher"):
        attention_kl(query, key, query[:, :2], key[:, :2], torch.ones(BATCH, LENGTH), student_scaling=1,
                     teacher_scaling=1)  # fmt: skip


@pytest.mark.parametrize("loss", [cosine_hidden_loss, mse_hidden_loss])
def test_hidden_losses_match_their_formula(loss):
    student, teacher = torch.randn(2, 9, 16), torch.randn(2, 9, 16)
    weights = torch.tensor([[1.0] * 9, [0.0] * 4 + [1.0] * 5])
    expected = torch.zeros((), dtype=torch.float64)
    for a, b, weight in zip(student.flatten(0, 1).double(), teacher.flatten(0, 1).double(), weights.flatten(),
                            strict=True):  # fmt: skip
        if loss is cosine_hidden_loss:
            expected += weight * (1 - (a @ b) / (a.norm() * b.norm()))
        else:
            expected += weight * ((a - b) ** 2).mean()
    torch.testing.assert_close(loss(student, teacher, weights).double(), expected, rtol=1e-6, atol=0)
    assert loss(student, student, weights).abs() < 1e-5


def heads_and_targets(num_tokens=50, vocabulary=37, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden, teacher_hidden = (torch.randn(num_tokens, width, generator=generator) for width in (12, 20))
    head, teacher_head = (torch.randn(vocabulary, width, generator=generator) / 2 for width in (12, 20))
    return hidden, head, torch.randint(vocabulary, (num_tokens,), generator=generator), teacher_hidden, teacher_head


def reference_logits_losses(hidden, head, targets, teacher_hidden, teacher_head, temperature):
    logits, teacher_logits = hidden.double() @ head.double().T, teacher_hidden.double() @ teacher_head.double().T
    probabilities = logits.exp() / logits.exp().sum(-1, keepdim=True)
    cross_entropy = -probabilities[torch.arange(len(targets)), targets].log().sum()
    student, teacher = (
        scores.exp() / scores.exp().sum(-1, keepdim=True)
        for scores in (logits / temperature, teacher_logits / temperature)
    )
    return cross_entropy, temperature**2 * (teacher * (teacher / student).log()).sum()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("chunk_size", [7, 2048])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 0.7), (1.3, 0.0)])
def test_logits_losses_and_their_gradient_match_the_full_softmax(temperature, chunk_size, weights):
    hidden, head, targets, teacher_hidden, teacher_head = heads_and_targets()
    hidden.requires_grad_(), head.requires_grad_()
    result = logits_losses(
        hidden,
        head,
        targets,
        cross_entropy_weight=weights[0],
        logits_weight=weights[1],
        teacher_hidden=teacher_hidden,
        teacher_head=teacher_head,
        temperature=temperature,
        chunk_size=chunk_size,
    )
    (0.5 * result.total).backward()
    doubles = [tensor.detach().double().requires_grad_() for tensor in (hidden, head)]
    terms = reference_logits_losses(*doubles, targets, teacher_hidden, teacher_head, temperature)
    total = weights[0] * terms[0] + weights[1] * terms[1]
    (0.5 * total).backward()
    torch.testing.assert_close(result.total.detach().double(), total.detach(), rtol=1e-6, atol=0)
    for found, expected, weight in zip((result.cross_entropy, result.kl), terms, weights, strict=True):
        torch.testing.assert_close(found.double(), expected.detach() * (weight > 0), rtol=1e-6, atol=0)
        assert not found.requires_grad
    for tensor, double in zip((hidden, head), doubles, strict=True):
        torch.testing.assert_close(tensor.grad.double(), double.grad, rtol=1e-5, atol=1e-6)


def test_kl_of_equal_models_is_zero_and_they_agree():
    hidden, head, targets, *_ = heads_and_targets()
    with torch.no_grad():
        result = logits_losses(hidden, head, targets, cross_entropy_weight=1.0, logits_weight=1.0,
                               teacher_hidden=hidden, teacher_head=head)  # fmt: skip
    assert result.kl == 0
    assert result.agreement == len(targets)


def test_agreement_counts_equal_likeliest_tokens():
    hidden, head, targets, teacher_hidden, teacher_head = heads_and_targets()
    with torch.no_grad():
        result = logits_losses(hidden, head, targets, cross_entropy_weight=1.0, logits_weight=1.0,
                               teacher_hidden=teacher_hidden, teacher_head=teacher_head)  # fmt: skip
    expected = ((hidden @ head.T).argmax(-1) == (teacher_hidden @ teacher_head.T).argmax(-1)).sum()
    assert 0 < expected < len(targets)
    assert result.agreement == expected


def test_a_frozen_head_gets_no_gradient():
    hidden, head, targets, *_ = heads_and_targets()
    hidden.requires_grad_()
    logits_losses(hidden, head, targets, cross_entropy_weight=1.0).total.backward()
    assert head.grad is None
    assert hidden.grad.abs().sum() > 0


def test_supervised_positions_predict_a_target():
    labels = torch.tensor([[5, 6, 7, -100], [-100, -100, 8, 9]])
    expected = torch.tensor([[True, True, False, False], [False, True, True, False]])
    assert supervised_positions(labels).equal(expected)
