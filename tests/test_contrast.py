"""Scores of continuations: where they begin, and answers worked out by hand from models of known probabilities."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from tinywave.eval.contrast import LOCAL_WINDOW, continuation_start, score_contrasts
from tinywave.eval.scoring import ScoringError, score_sequences
from tinywave.eval.sequence_formats import UnitSequenceFormat
from tinywave.eval.suites import Pair, evaluate_suite

# BOS 0, units 1 and 2, a third unit 3 that breaks the rule.
FORMAT = UnitSequenceFormat(range(1, 4), bos_token_id=0)


class BigramModel(nn.Module):
    """A causal language model given by its table of log-probabilities; counts the tokens that it reads."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(torch.tensor(table).log())
        self.sequences_read = []

    def forward(self, input_ids, attention_mask, use_cache=False):
        self.sequences_read += [
            row[: mask.sum()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)
        ]
        return CausalLMOutput(logits=self.table[input_ids])


@pytest.fixture
def model():
    tiny = 1e-30
    return BigramModel([
        [tiny, 0.5, 0.25, 0.25],
        [tiny, 0.2, 0.7, 0.1],
        [tiny, 0.6, 0.3, 0.1],
        [tiny, 0.1, 0.1, 0.8],
    ])  # fmt: skip


def make_pair(positive, negative, index=0):
    return Pair(
        id=f"pair-{index}", suite="switch", phenomenon="all", group=f"group-{index}", voice="none", encoder="feed",
        positive_units=tuple(positive), negative_units=tuple(negative), positive_text="a", negative_text="b",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("positive", "negative", "start"),
    [
        ([0, 5, 6, 7], [0, 5, 8, 7], 2),
        ([0, 5, 6], [0, 5, 6, 7], 2),  # a beginning: from its last token on
        ([0, 5, 6], [0, 5, 6], 2),
        ([5, 6], [7, 6], 1),  # no context before position 1
    ],
)
def test_where_a_continuation_begins(positive, negative, start):
    assert continuation_start(positive, negative) == continuation_start(negative, positive) == start


def test_local_is_the_mean_over_the_window(model):
    halves = {"positive": [0, 1, 2, 1, 2, 3], "negative": [0, 1, 3, 3, 3, 3, 3]}
    whole, local = score_contrasts(model, halves, "local", sequence_format=FORMAT, window=2)
    assert [score.num_tokens for score in local] == [2, 2]
    assert local[0].log_likelihood == pytest.approx(math.log(0.7 * 0.6))
    assert local[1].log_likelihood == pytest.approx(math.log(0.1 * 0.8))
    assert whole[0].log_likelihood == pytest.approx(math.log(0.5 * 0.7 * 0.6 * 0.7 * 0.1))
    assert whole[1].num_tokens == 6
    _, longer = score_contrasts(model, halves, "local", sequence_format=FORMAT, window=4)
    assert longer[0].log_likelihood == pytest.approx(math.log(0.7 * 0.6 * 0.7 * 0.1))
    assert longer[1].log_likelihood == pytest.approx(math.log(0.1 * 0.8**3))
    _, everything = score_contrasts(model, halves, "local", sequence_format=FORMAT)
    assert [score.num_tokens for score in everything] == [4, 5]


def test_the_credit_of_local_compares_means(model):
    # After id 1: log(0.7^4 0.6^3) / 7 = -0.42 against log 0.1 = -2.30 a token, but -2.96 against -2.30 in sum.
    pair = make_pair([0, 1, 0, 1, 0, 1, 0, 1], [0, 2])
    result = evaluate_suite(model, [pair], sequence_format=FORMAT, normalisation="local")
    assert result.rows[0]["positive_local_log_likelihood"] < result.rows[0]["negative_local_log_likelihood"]
    assert result.accuracy == 1.0


def test_pmi_subtracts_the_continuation_alone(model):
    halves = {"positive": [0, 1, 2, 1], "negative": [0, 1, 3, 3]}
    whole, pmi = score_contrasts(model, halves, "pmi", sequence_format=FORMAT)
    # Given unit 1 against given BOS; what follows the first token of a continuation cancels in a bigram model.
    assert pmi[0].log_likelihood == pytest.approx(math.log(0.7 / 0.25))
    assert pmi[1].log_likelihood == pytest.approx(math.log(0.1 / 0.25))
    assert [score.num_tokens for score in pmi] == [2, 2]
    assert whole[1].log_likelihood == pytest.approx(math.log(0.5 * 0.1 * 0.8))


def test_each_sequence_is_read_once(model):
    halves = {"positive": [0, 1, 2, 1], "negative": [0, 1, 3, 3]}
    score_contrasts(model, halves, "local", sequence_format=FORMAT, window=1)
    assert sorted(model.sequences_read) == [[0, 1, 2, 1], [0, 1, 3, 3]]
    model.sequences_read.clear()
    score_contrasts(model, halves, "pmi", sequence_format=FORMAT)
    assert sorted(model.sequences_read) == [[0, 1, 2, 1], [0, 1, 3, 3], [0, 2, 1], [0, 3, 3]]


def test_the_scores_can_disagree(model):
    # As a whole the negative half wins by its long, likely end; where the halves part, the positive one is likelier.
    pair = make_pair([0, 1, 0], [0, *[2] * 8])
    form = UnitSequenceFormat(range(1, 4), bos_token_id=0, deduplicate=False)
    results = {name: evaluate_suite(model, [pair], sequence_format=form, normalisation=name, window=1)
               for name in ("mean", "sum", "local", "pmi")}  # fmt: skip
    by_hand = {"positive": [0.5, 0.7, 0.6], "negative": [0.5, 0.1, *[0.8] * 7]}
    means = {half: np.log(values).mean() for half, values in by_hand.items()}
    assert means["negative"] > means["positive"]
    assert results["mean"].accuracy == 0
    assert results["sum"].accuracy == float(math.prod(by_hand["positive"]) > math.prod(by_hand["negative"])) == 1
    assert results["local"].accuracy == results["pmi"].accuracy == 1


def test_what_a_suite_records(model):
    pairs = [make_pair([0, 1, 0], [0, 2, 2], index) for index in range(2)]
    plain = evaluate_suite(model, pairs, sequence_format=FORMAT)
    local = evaluate_suite(model, pairs, sequence_format=FORMAT, normalisation="local", window=2)
    pmi = evaluate_suite(model, pairs, sequence_format=FORMAT, normalisation="pmi")
    assert "window" not in plain.convention and local.convention["window"] == 2
    assert local.convention["normalisation"] == "local" and LOCAL_WINDOW == 25
    assert local.accuracy_by_normalisation == plain.accuracy_by_normalisation | {"local": 1.0}
    for row, plain_row in zip(pmi.rows, plain.rows, strict=True):
        assert {name: row[name] for name in plain_row if name != "credit"} == {
            name: value for name, value in plain_row.items() if name != "credit"
        }
        assert row["positive_pmi_log_likelihood"] == pytest.approx(math.log(0.7 / 0.25))
        assert row["credit"] == row["credit_pmi"] == 1
    assert local.rows[0]["negative_local_num_tokens"] == 1


@pytest.mark.parametrize("name", ["local", "pmi"])
def test_identical_halves_tie(model, name):
    pair = make_pair([0, 1, 1], [0, 0, 1])
    assert evaluate_suite(model, [pair], sequence_format=FORMAT, normalisation=name).accuracy == 0.5


def test_without_context_every_pmi_is_zero(model):
    result = evaluate_suite(model, [make_pair([0, 1], [2, 1])], sequence_format=FORMAT, normalisation="pmi")
    assert result.accuracy == 0.5 and result.rows[0]["positive_pmi_log_likelihood"] == 0


def test_closing_token_belongs_to_the_continuation(model):
    form = UnitSequenceFormat(range(1, 3), bos_token_id=0, eos_token_id=3)
    halves = {"positive": form.speech_to_sequence([0]), "negative": form.speech_to_sequence([0, 1])}
    _, local = score_contrasts(model, halves, "local", sequence_format=form)
    assert local[0].log_likelihood == pytest.approx(math.log(0.1))
    assert local[1].log_likelihood == pytest.approx(math.log(0.7 * 0.1))


def test_equals_separate_forward_passes_of_a_transformer():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    model, form = LlamaForCausalLM(config), UnitSequenceFormat(range(2, 12), bos_token_id=1)
    generator = np.random.default_rng(0)
    halves = {}
    for index in range(6):
        context = generator.integers(2, 12, index).tolist()
        for half, first in (("positive", 2), ("negative", 3)):
            halves[f"{half} {index}"] = [1, *context, first, *generator.integers(2, 12, 3 + index).tolist()]
    scored = {"scored_ids": form.scored_ids, "batch_size": 1}
    _, local = score_contrasts(model, halves, "local", sequence_format=form, window=3)
    _, pmi = score_contrasts(model, halves, "pmi", sequence_format=form)
    for (name, sequence), window, information in zip(halves.items(), local, pmi, strict=True):
        start = int(name.split()[1]) + 1
        [expected] = score_sequences(model, [sequence[: start + 3]], first_scored=start, **scored)
        assert window.num_tokens == 3 and window.log_likelihood == pytest.approx(expected.log_likelihood, abs=1e-4)
        [given] = score_sequences(model, [sequence], first_scored=start, **scored)
        [alone] = score_sequences(model, [[1, *sequence[start:]]], **scored)
        expected = given.log_likelihood - alone.log_likelihood
        assert information.log_likelihood == pytest.approx(expected, abs=1e-4)


def test_what_cannot_be_scored_is_refused(model):
    halves = {"positive": [1, 2], "negative": [1, 3]}
    with pytest.raises(ValueError, match="format without BOS and marker; PMI requires"):
        score_contrasts(model, halves, "pmi", sequence_format=UnitSequenceFormat(range(1, 4)))
    with pytest.raises(ValueError, match="found window=0; expected at least 1 token"):
        score_contrasts(model, halves, "local", sequence_format=FORMAT, window=0)
    with pytest.raises(ValueError, match="Unknown contrast 'sum'"):
        score_contrasts(model, halves, "sum", sequence_format=FORMAT)
    with pytest.raises(ValueError, match=r"Unknown normalisation 'median'; .* 'local', 'pmi'"):
        evaluate_suite(model, [make_pair([0], [1])], sequence_format=FORMAT, normalisation="median")
    with torch.no_grad():
        model.table[2] = float("nan")
    with pytest.raises(ScoringError, match="3 of 6 log-likelihoods are NaN or infinite, the first: positive"):
        score_contrasts(model, {"positive": [0, 1, 2, 1], "negative": [0, 1, 3, 3]}, "pmi", sequence_format=FORMAT)
