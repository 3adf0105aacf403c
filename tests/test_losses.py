"""The hidden-state losses against their formulas in double precision, and which positions count."""

import pytest
import torch

from tinywave.training.losses import (
    HIDDEN_LOSSES,
    cosine_hidden_loss,
    normalized_mse_hidden_loss,
    supervised_positions,
)


def by_definition(name, student, teacher):
    """Distance of two vectors, element by element."""
    if name == "cosine":
        return 1 - (student @ teacher) / (student.norm() * teacher.norm())
    squares = [(a - b) ** 2 for a, b in zip(student, teacher, strict=True)]
    return sum(squares) / (len(squares) if name == "mse" else sum(b**2 for b in teacher))


@pytest.mark.parametrize("name", HIDDEN_LOSSES)
def test_hidden_losses_and_their_gradients_match_their_formula(name):
    student, teacher = torch.randn(2, 9, 16, requires_grad=True), torch.randn(2, 9, 16)
    weights = torch.tensor([[1.0] * 9, [0.0] * 4 + [0.5] * 5])
    loss = HIDDEN_LOSSES[name](student, teacher, weights)
    loss.backward()
    double = student.detach().double().requires_grad_()
    rows = zip(double.flatten(0, 1), teacher.flatten(0, 1).double(), weights.flatten(), strict=True)
    expected = sum(weight * by_definition(name, a, b) for a, b, weight in rows)
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(student.grad.double(), double.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", HIDDEN_LOSSES)
def test_gradients_of_hidden_losses_by_finite_differences(name):
    student, teacher = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True), torch.randn(2, 3, 4).double()
    weights = torch.rand(2, 3)
    assert torch.autograd.gradcheck(lambda hidden: HIDDEN_LOSSES[name](hidden, teacher, weights), (student,))


@pytest.mark.parametrize("name", HIDDEN_LOSSES)
def test_equal_hidden_states_have_no_distance(name):
    student = torch.randn(2, 9, 16)
    assert HIDDEN_LOSSES[name](student, student, torch.ones(2, 9)).abs() < 1e-5


@pytest.mark.parametrize("name", HIDDEN_LOSSES)
def test_half_precision_is_compared_in_single(name):
    student, teacher = torch.randn(2, 9, 16).bfloat16(), torch.randn(2, 9, 16).bfloat16()
    weights = torch.ones(2, 9)
    assert HIDDEN_LOSSES[name](student, teacher, weights) == HIDDEN_LOSSES[name](
        student.float(), teacher.float(), weights
    )


def test_what_each_distance_sees():
    teacher, weights = torch.randn(2, 9, 16), torch.ones(2, 9)
    torch.testing.assert_close(normalized_mse_hidden_loss(0 * teacher, teacher, weights), torch.tensor(18.0))
    assert cosine_hidden_loss(3 * teacher, teacher, weights).abs() < 1e-5
    scaled = [normalized_mse_hidden_loss(factor * teacher[:1], factor * teacher[1:], weights) for factor in (1, 100)]
    torch.testing.assert_close(*scaled)


def test_the_cosine_of_vectors_of_zeros_is_that_of_torch():
    student, teacher = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    student[0, 0], teacher[0, 1], student[0, 2], teacher[0, 2] = 0, 0, 0, 0
    expected = (1 - torch.nn.functional.cosine_similarity(student, teacher, dim=-1)).sum()
    assert cosine_hidden_loss(student, teacher, torch.ones(1, 3)) == pytest.approx(float(expected)) == 3


def test_a_teacher_vector_of_zeros_stays_finite():
    student = torch.randn(1, 2, 4, requires_grad=True)
    normalized_mse_hidden_loss(student, torch.zeros(1, 2, 4), torch.ones(1, 2)).backward()
    assert student.grad.isfinite().all()


def test_supervised_positions_predict_a_target():
    labels = torch.tensor([[5, 6, 7, -100], [-100, -100, 8, 9]])
    expected = torch.tensor([[True, True, False, False], [False, True, True, False]])
    assert supervised_positions(labels).equal(expected)
