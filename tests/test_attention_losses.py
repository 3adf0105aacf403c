"""The attention losses against full maps in double precision, for every head count, padding and packing."""

import pytest
import torch

from tinywave.training import attention_losses
from tinywave.training.attention_losses import attention_kl, relation_kl

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
        monkeypatch.setattr(attention_losses, "_CPU_ATTENTION_BLOCK", block)
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


def packed():
    """Allowed pairs of rows that hold documents of 30, 25 and 15 tokens."""
    document = torch.tensor([0] * 30 + [1] * 25 + [2] * 15).expand(BATCH, -1)
    same = document[:, None, :, None] == document[:, None, None, :]
    return same & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()


def reference_relation_kl(student, teacher, weights, allowed, num_heads):
    """MiniLMv2 by its definition: heads joined, split again, and related to themselves."""
    joined = [vectors.double().permute(0, 2, 1, 3).reshape(BATCH, LENGTH, -1) for vectors in (student, teacher)]
    total = torch.zeros((), dtype=torch.float64)
    for head in range(num_heads):
        maps = []
        for vectors in joined:
            size = vectors.shape[-1] // num_heads
            part = vectors[..., head * size : (head + 1) * size]
            exponentials = (part @ part.transpose(1, 2) / size**0.5).exp() * allowed[:, 0]
            maps.append(exponentials / exponentials.sum(-1, keepdim=True).clamp(min=1e-300))
        logs = [torch.where(allowed[:, 0], a_map, 1.0).log() for a_map in maps]
        total = total + ((maps[1] * (logs[1] - logs[0])).sum(-1) * weights).sum()
    return total / num_heads


@pytest.mark.parametrize("mask", ["causal", "left", "packed"])
@pytest.mark.parametrize(
    ("num_heads", "head_dim", "num_relation_heads"), [(2, 8, 2), (8, 4, 4), (6, 8, 16), (3, 7, 1)]
)
def test_relation_kl_and_its_gradient_match_full_maps(mask, num_heads, head_dim, num_relation_heads):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(BATCH, num_heads, LENGTH, head_dim, generator=generator, requires_grad=True)
    teacher = torch.randn(BATCH, 4, LENGTH, 16, generator=generator)
    tokens, left = padded("left")
    allowed = {"causal": torch.ones(LENGTH, LENGTH).tril().bool().expand(BATCH, 1, -1, -1), "left": left,
               "packed": packed()}[mask]  # fmt: skip
    weights = tokens.float() if mask == "left" else torch.rand(BATCH, LENGTH, generator=generator)
    loss = relation_kl(student, teacher, weights, num_relation_heads=num_relation_heads,
                       mask=None if mask == "causal" else allowed)  # fmt: skip
    loss.backward()
    double = student.detach().double().requires_grad_()
    expected = reference_relation_kl(double, teacher, weights, allowed, num_relation_heads)
    expected.backward()
    assert expected > 1
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(student.grad.double(), double.grad, rtol=1e-5, atol=1e-5)


def test_attention_kl_of_packed_documents_is_that_of_the_documents():
    student, teacher = queries_and_keys(), queries_and_keys(seed=1)
    weights = torch.rand(BATCH, LENGTH)
    scalings = dict(student_scaling=0.3, teacher_scaling=0.3)
    together = attention_kl(*student, *teacher, weights, mask=packed(), **scalings)
    alone = sum(
        attention_kl(*(part[:, :, rows] for part in (*student, *teacher)), weights[:, rows], **scalings)
        for rows in (slice(0, 30), slice(30, 55), slice(55, 70))
    )
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=0)


def test_one_mask_serves_every_row_of_the_batch():
    student, teacher = queries_and_keys(), queries_and_keys(seed=1)
    weights, scalings = torch.rand(BATCH, LENGTH), dict(student_scaling=0.3, teacher_scaling=0.3)
    each = attention_kl(*student, *teacher, weights, mask=packed(), **scalings)
    shared = attention_kl(*student, *teacher, weights, mask=packed()[:1], **scalings)
    assert each == shared


@pytest.mark.parametrize("key_heads", [4, 1])
def test_gradients_of_the_attention_losses_by_finite_differences(key_heads):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 4, 5, 3), (2, key_heads, 5, 3), (2, 4, 5, 2), (2, 4, 5, 2)
    query, key, *teacher = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)
    weights = torch.rand(2, 5, dtype=torch.float64, generator=generator)
    allowed = torch.ones(5, 5).tril().bool().expand(2, 1, -1, -1).clone()
    allowed[1, :, :, :2] = False

    def rows(query, key):
        return attention_kl(query, key, *teacher, weights, student_scaling=0.5, teacher_scaling=0.7, mask=allowed)

    def relations(query):
        return relation_kl(query, teacher[0], weights, num_relation_heads=2)

    assert torch.autograd.gradcheck(rows, (query.requires_grad_(), key.requires_grad_()))
    assert torch.autograd.gradcheck(relations, (query,))


def test_equal_attention_has_no_distance_and_no_gradient():
    query, key = (tensor.requires_grad_() for tensor in queries_and_keys(2))
    weights = torch.ones(BATCH, LENGTH)
    loss = attention_kl(query, key, query, key, weights, student_scaling=0.3, teacher_scaling=0.3)
    loss = loss + relation_kl(query, query, weights, num_relation_heads=8)
    loss.backward()
    assert loss.abs() < 1e-6
    assert query.grad.abs().max() < 1e-6
    assert key.grad.abs().max() < 1e-6


def test_relation_heads_that_do_not_divide_are_refused():
    query, _ = queries_and_keys()
    with pytest.raises(ValueError, match=r"5 relation heads cannot share 32 numbers \(4 heads of 8\)"):
        relation_kl(query, query, torch.ones(BATCH, LENGTH), num_relation_heads=5)
