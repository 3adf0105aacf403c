"""Sequences of other people's models, and how many of their tokens are scored."""

import math

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.modeling_outputs import CausalLMOutput

from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.eval.scoring import score_sequences
from tinywave.eval.sequence_formats import SpeechSequenceFormat, UnitSequenceFormat
from tinywave.tokenization_tinywave import SpeechStreams

# 8 ids: BOS 0, EOS 1, [Text] 2, [Speech] 3, units 4..7.
TINY = TinyWaveConfig(
    vocab_size=8, num_units=4, text_offset=2, text_vocab_size=2, text_marker_id=2, speech_marker_id=3, unit_offset=4,
    bos_token_id=0, eos_token_id=1, pad_token_id=0,
)  # fmt: skip
SLAMKIT = UnitSequenceFormat(range(2, 502), bos_token_id=1, eos_token_id=1)


class PositionModel(nn.Module):
    """Gives the token at position n the probability 2^-n, whatever it is."""

    def __init__(self, vocab_size):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.vocab_size = vocab_size

    def forward(self, input_ids, attention_mask, use_cache=False):
        probability = 2.0 ** -torch.arange(1, input_ids.shape[1] + 1)
        logits = torch.zeros(*input_ids.shape, self.vocab_size)
        targets = input_ids.roll(-1, 1)[..., None]
        others = (1 - probability) / (self.vocab_size - 1)
        logits += others.log()[:, None]
        return CausalLMOutput(logits=logits.scatter(2, targets, probability.log()[None, :, None]))


def score(form, speech, vocab_size):
    sequence = form.speech_to_sequence(speech)
    [result] = score_sequences(PositionModel(vocab_size), [sequence], scored_ids=form.scored_ids)
    return result


@pytest.mark.parametrize(
    ("options", "sequence", "scored_positions"),
    [
        # Five frames, T = 3 tokens.
        ({}, [0, 3, 4, 6, 4], [2, 3, 4]),
        ({"marker": False}, [0, 4, 6, 4], [1, 2, 3]),
        ({"marker": False, "eos": True}, [0, 4, 6, 4, 1], [1, 2, 3, 4]),  # slamkit: T + 1
        ({"bos": False, "marker": False}, [4, 6, 4], [1, 2]),  # SALMon: T - 1
        ({"eos": True}, [0, 3, 4, 6, 4, 1], [2, 3, 4, 5]),
        ({"deduplicate": False, "eos": True}, [0, 3, 4, 4, 6, 6, 4, 1], [2, 3, 4, 5, 6, 7]),
    ],
)
def test_number_of_targets(options, sequence, scored_positions):
    form = SpeechSequenceFormat(TINY, **options)
    assert form.speech_to_sequence([0, 0, 2, 2, 0]) == sequence
    result = score(form, [0, 0, 2, 2, 0], 8)
    assert result.num_tokens == len(scored_positions)
    assert result.log_likelihood == pytest.approx(-math.log(2) * sum(scored_positions), abs=1e-5)
    assert form.to_record()["eos"] is options.get("eos", False)


def test_eos_is_written_in_the_record():
    plain, closed = SpeechSequenceFormat(TINY), SpeechSequenceFormat(TINY, eos=True)
    assert closed.scored_ids == [1, *plain.scored_ids] == [1, 4, 5, 6, 7]
    assert closed.to_record()["closing_ids"] == [1] and plain.to_record()["closing_ids"] == []
    assert plain.targets == "tokens of the scored streams; BOS, markers and EOS are not scored"
    assert closed.targets == "tokens of the scored streams and EOS; BOS and markers are not scored"


def test_slamkit_layout():
    assert SLAMKIT.speech_to_sequence([3, 3, 499]) == [1, 5, 501, 1]
    result = score(SLAMKIT, [3, 3, 499], 502)
    assert result.num_tokens == 3
    assert result.log_likelihood == pytest.approx(-math.log(2) * (1 + 2 + 3), abs=1e-5)
    assert SLAMKIT.to_record() == {
        "streams": ["unit"],
        "scored_streams": ["unit"],
        "scored_ids": {"unit": [2, 501]},
        "deduplicated_streams": ["unit"],
        "prefix_ids": [1],
        "closing_ids": [1],
        "bos": True,
        "marker": False,
        "eos": True,
    }


def test_spirit_lm_layout_is_that_of_its_configuration():
    config = TinyWaveConfig.from_preset("spirit-lm-7b")
    stated = UnitSequenceFormat(range(32002, 32503), bos_token_id=1, marker_id=32001)
    known = SpeechSequenceFormat(config)
    assert stated.speech_to_sequence([7, 7, 500]) == known.speech_to_sequence([7, 7, 500]) == [1, 32001, 32009, 32502]
    assert stated.to_record() == known.to_record() and stated.scored_ids == known.scored_ids
    assert stated.unit_rate == known.unit_rate == 25.0


def test_units_can_have_any_ids():
    form = UnitSequenceFormat([9, 4, 7], deduplicate=False)
    assert form.speech_to_sequence(SpeechStreams([0, 0, 2], pitch=[1, 1], style=[0])) == [9, 9, 7]
    assert form.scored_ids == [4, 7, 9]
    record = form.to_record()
    assert record["unit_ids"] == [9, 4, 7] and record["scored_ids"] == {"unit": [4, 9]}
    assert record["deduplicated_streams"] == record["prefix_ids"] == [] and not record["bos"]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SpeechSequenceFormat(LlamaConfig()), "Found a LlamaConfig, .* pass a UnitSequenceFormat"),
        (lambda: UnitSequenceFormat([4, 4]), "Found 2 unit_ids, 1 of them different"),
        (lambda: UnitSequenceFormat([]), "Found 0 unit_ids"),
        (lambda: UnitSequenceFormat(range(1, 9), eos_token_id=2), r"the special ids \[2\]"),
        (lambda: UnitSequenceFormat(range(4, 9), bos_token_id=0, marker_id=1, eos_token_id=1), "id 1 both as EOS"),
        (lambda: SLAMKIT.speech_to_sequence([3, 500]), r"found unit 500; this model has the units 0\.\.499"),
    ],
)
def test_impossible_formats_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
