"""Which inputs both decoders read, which positions count, and calling inside a module's hooks."""

import pytest
import torch
from torch import nn

from tinywave.training.decoder_pass import alignable_positions, call_inside, decoder_inputs, flat_indices, take

IDS = torch.ones(2, 4, dtype=torch.long)
RIGHT, LEFT = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
RESTARTING = torch.tensor([[0, 1, 0, 1], [0, 1, 2, 3]])


@pytest.mark.parametrize("positions", [None, RESTARTING])
def test_a_mask_stays_only_where_it_changes_something(positions):
    batch = {"input_ids": IDS, "position_ids": positions, "labels": IDS}
    assert "attention_mask" not in decoder_inputs(batch | {"attention_mask": RIGHT})
    assert decoder_inputs(batch | {"attention_mask": LEFT})["attention_mask"] is LEFT
    blocks = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    assert decoder_inputs(batch | {"attention_mask": blocks})["attention_mask"] is blocks
    assert "labels" not in decoder_inputs(batch)
    assert ("position_ids" in decoder_inputs(batch)) == (positions is not None)


def test_positions_of_padding_are_not_aligned():
    positions = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0]]).bool()
    assert alignable_positions(positions, {"attention_mask": LEFT}).tolist() == [[1, 1, 1, 0], [0, 0, 1, 0]]
    assert alignable_positions(positions, {}) is positions


def test_positions_are_taken_row_by_row():
    positions = torch.tensor([[1, 0, 1], [0, 1, 1]]).bool()
    values = torch.randn(2, 3, 4)
    assert take(values, flat_indices(positions)).equal(values[positions])
    labels = torch.arange(6).reshape(2, 3)
    assert take(labels, flat_indices(positions)).tolist() == [0, 2, 4, 5]


def test_a_call_inside_passes_the_hooks_and_leaves_no_trace():
    module, calls = nn.Linear(2, 2), []
    module.register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    assert call_inside(module, module, lambda value: value + 1, 2) == 3
    assert calls == [(2,)]
    with pytest.raises(ZeroDivisionError):
        call_inside(module, module, lambda: 1 / 0)
    assert "forward" not in module.__dict__
    assert module(torch.ones(2)).shape == (2,)


def test_a_forward_that_was_set_before_is_set_again():
    module = nn.Linear(2, 2)
    module.forward = own = lambda value: -value
    wrapper = nn.Sequential(module)
    assert call_inside(wrapper, module, lambda value: value + 1, 2) == 3
    assert module.forward is own
