"""Log-likelihoods against a token-by-token reference and against models whose probabilities are known."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.data.interleaving import AlignedDocument
from tinywave.eval.scoring import (
    PerplexityResult,
    ScoringError,
    SequenceScore,
    pair_credit,
    score_perplexity,
    score_sequences,
    speech_to_sequences,
)
from tinywave.eval.sequence_formats import SpeechSequenceFormat, UnitSequenceFormat
from tinywave.tokenization_tinywave import SpeechStreams, ids_to_streams

UNITS = range(8, 40)


class BigramModel(nn.Module):
    """A causal language model given by its table of log-probabilities: `table[previous, next]`."""

    def __init__(self, table: torch.Tensor):
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        return CausalLMOutput(logits=self.table[input_ids])


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=48, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, initializer_range=0.5, attention_dropout=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def sequences():
    generator = np.random.default_rng(0)
    lengths = [5, 61, 17, 2, 40, 33, 90, 12, 12, 7, 55]
    return [[1, 7, *generator.integers(UNITS.start, UNITS.stop, length).tolist()] for length in lengths]


@torch.no_grad()
def token_by_token(model, sequence, scored, restrict=None):
    """log p of each scored target from a forward pass over nothing but its past, in numpy."""
    model.eval()
    total, count = 0.0, 0
    for position in range(1, len(sequence)):
        if sequence[position] not in scored:
            continue
        logits = model(torch.tensor([sequence[:position]])).logits[0, -1].double().numpy()
        logits = logits if restrict is None else logits[list(restrict)]
        target = sequence[position] - (0 if restrict is None else restrict.start)
        total += logits[target] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        count += 1
    return total, count


@pytest.mark.parametrize("vocabulary", ["full", "scored"])
def test_equals_token_by_token_scoring(llama, sequences, vocabulary):
    scores = score_sequences(llama, sequences, scored_ids=UNITS, vocabulary=vocabulary, batch_size=4)
    for score, sequence in zip(scores, sequences, strict=True):
        total, count = token_by_token(llama, sequence, UNITS, UNITS if vocabulary == "scored" else None)
        assert score.num_tokens == count == len(sequence) - 2
        assert score.log_likelihood == pytest.approx(total, abs=1e-4)


def test_other_architecture_and_interleaved_text():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=48, n_positions=64, n_embd=16, n_layer=1, n_head=2))
    sequence = [1, 6, 2, 3, 4, 7, 10, 11, 12, 6, 5, 7, 30]
    [score] = score_sequences(model, [sequence], scored_ids=UNITS)
    total, count = token_by_token(model, sequence, UNITS)
    assert score.num_tokens == count == 4
    assert score.log_likelihood == pytest.approx(total, abs=1e-5)


def test_batch_size_does_not_matter(llama, sequences):
    alone = score_sequences(llama, sequences, scored_ids=UNITS, batch_size=1)
    together = score_sequences(llama, sequences, scored_ids=UNITS, batch_size=8)
    for one, eight in zip(alone, together, strict=True):
        assert one.num_tokens == eight.num_tokens
        assert abs(one.mean_log_likelihood - eight.mean_log_likelihood) < 1e-5
        assert abs(one.log_likelihood - eight.log_likelihood) < 1e-5 * max(1, one.num_tokens)


def test_first_scored_splits_the_log_likelihood(llama, sequences):
    sequence = sequences[1]
    [whole] = score_sequences(llama, [sequence], scored_ids=UNITS)
    [start] = score_sequences(llama, [sequence[:30]], scored_ids=UNITS)
    [rest] = score_sequences(llama, [sequence], scored_ids=UNITS, first_scored=30)
    assert start.num_tokens + rest.num_tokens == whole.num_tokens
    assert start.log_likelihood + rest.log_likelihood == pytest.approx(whole.log_likelihood, abs=1e-4)


@torch.no_grad()
def test_left_padding_gives_the_same_scores(llama, sequences):
    llama.eval()
    length = max(map(len, sequences))
    ids = torch.tensor([[0] * (length - len(sequence)) + sequence for sequence in sequences])
    mask = torch.tensor([[0] * (length - len(sequence)) + [1] * len(sequence) for sequence in sequences])
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    logits = llama(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, :-1].double()
    log_probabilities = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    is_unit = (ids[:, 1:] >= UNITS.start) & (ids[:, 1:] < UNITS.stop) & mask[:, 1:].bool()
    expected = torch.where(is_unit, log_probabilities, 0).sum(1) / is_unit.sum(1)
    for batch_size in (1, 8):
        scores = score_sequences(llama, sequences, scored_ids=UNITS, batch_size=batch_size)
        assert [score.num_tokens for score in scores] == is_unit.sum(1).tolist()
        for score, mean in zip(scores, expected.tolist(), strict=True):
            assert abs(score.mean_log_likelihood - mean) < 1e-5


def test_order_of_the_sequences_changes_nothing(llama, sequences):
    scores = score_sequences(llama, sequences, scored_ids=UNITS, batch_size=4)
    assert score_sequences(llama, sequences[::-1], scored_ids=UNITS, batch_size=4) == scores[::-1]


def test_spans_are_scored_without_another_forward_pass(llama, sequences):
    sequence, rows = sequences[1], []
    hook = llama.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    try:
        scores = score_sequences(
            llama, [sequence] * 4, scored_ids=UNITS, first_scored=[1, 20, 30, 40], last_scored=[19, 29, 39, 500]
        )
    finally:
        hook.remove()
    assert rows == [(1, len(sequence))]
    assert [score.num_tokens for score in scores] == [18, 10, 10, len(sequence) - 40]
    [whole] = score_sequences(llama, [sequence], scored_ids=UNITS)
    assert sum(score.log_likelihood for score in scores) == pytest.approx(whole.log_likelihood, abs=1e-5)
    [until] = score_sequences(llama, [sequence], scored_ids=UNITS, first_scored=20, last_scored=29)
    assert until == scores[1]


def test_spans_that_hold_nothing_are_refused(llama):
    with pytest.raises(ScoringError, match="Sequence 1 of 4 ids holds no target.* at positions 4 to 3"):
        score_sequences(llama, [[1, 9, 9, 9]] * 2, scored_ids=UNITS, first_scored=[1, 4])
    with pytest.raises(ValueError, match="Found 1 first_scored and 2 last_scored for 2 sequences"):
        score_sequences(llama, [[1, 9]] * 2, scored_ids=UNITS, first_scored=[1])


def test_plain_llama_scores_as_the_model_of_the_same_weights():
    torch.manual_seed(0)
    small = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "initializer_range": 0.4}
    known = LlamaForCausalLM(TinyWaveConfig.from_preset("nano-student", **small))
    plain = LlamaForCausalLM(LlamaConfig(**{
        name: value for name, value in known.config.to_dict().items() if name in LlamaConfig().to_dict()
    }))  # fmt: skip
    plain.load_state_dict(known.state_dict())
    formats = (
        SpeechSequenceFormat(known.config, eos=True),
        UnitSequenceFormat(range(512, 1012), bos_token_id=1, marker_id=511, eos_token_id=2),
    )
    generator = np.random.default_rng(0)
    speech = {f"Clip {length}": generator.integers(500, size=length).tolist() for length in (3, 20, 11)}
    both = []
    for model, form in zip((known, plain), formats, strict=True):
        sequences = list(speech_to_sequences(speech, form).values())
        both.append(score_sequences(model, sequences, scored_ids=form.scored_ids))
        both.append(score_perplexity(model, list(speech.values()), sequence_format=form))
    assert not hasattr(plain.config, "stream_ranges")
    assert both[:2] == both[2:]


@pytest.mark.parametrize("eos", [None, 1])
def test_opt_in_the_layout_of_slamkit(eos):
    torch.manual_seed(0)
    model = OPTForCausalLM(OPTConfig(
        vocab_size=42, hidden_size=16, ffn_dim=24, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=16,
        max_position_embeddings=64, init_std=0.5, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    ))  # fmt: skip
    form = UnitSequenceFormat(range(2, 42), bos_token_id=1, eos_token_id=eos)
    generator = np.random.default_rng(0)
    sequences = [form.speech_to_sequence(generator.integers(40, size=length)) for length in (9, 4, 17)]
    for sequence, score in zip(sequences, score_sequences(model, sequences, scored_ids=form.scored_ids), strict=True):
        total, count = token_by_token(model, sequence, form.scored_ids)
        assert score.num_tokens == count == len(sequence) - 1
        assert score.log_likelihood == pytest.approx(total, abs=1e-4)


def test_modes_of_all_modules_are_restored(llama, sequences):
    llama.train()
    llama.model.layers[0].eval()
    before = [module.training for module in llama.modules()]
    first = score_sequences(llama, sequences, scored_ids=UNITS)
    assert [module.training for module in llama.modules()] == before
    assert first == score_sequences(llama, sequences, scored_ids=UNITS)


def test_known_probabilities():
    # From 0: 1/2 each to units 1 and 2. From 1: 1/4 and 3/4. From 2: 7/8 and 1/8. Token 0 never follows.
    table = torch.tensor([[0, 1 / 2, 1 / 2], [0, 1 / 4, 3 / 4], [0, 7 / 8, 1 / 8]]).log().clamp_min(-100)
    [score] = score_sequences(BigramModel(table), [[0, 1, 2, 2, 1]], scored_ids=range(1, 3))
    assert score.num_tokens == 4
    assert score.log_likelihood == pytest.approx(math.log(1 / 2 * 3 / 4 * 1 / 8 * 7 / 8), abs=1e-6)


def test_restricted_vocabulary_renormalises():
    # Uniform over 10 ids, 4 of them units: 1/10 over the full vocabulary, 1/4 among units.
    model, sequence = BigramModel(torch.zeros(10, 10)), [0, 5, 6, 7]
    [full] = score_sequences(model, [sequence], scored_ids=range(4, 8))
    [units] = score_sequences(model, [sequence], scored_ids=range(4, 8), vocabulary="scored")
    assert full.mean_log_likelihood == pytest.approx(-math.log(10))
    assert units.mean_log_likelihood == pytest.approx(-math.log(4))


def test_mean_and_sum_disagree_on_lengths():
    short, long = SequenceScore(-6.0, 2), SequenceScore(-10.0, 5)
    assert pair_credit(short, long, "sum") == 1.0
    assert pair_credit(short, long, "mean") == 0.0


def test_tie_is_half():
    assert pair_credit(SequenceScore(-6.0, 2), SequenceScore(-9.0, 3), "mean") == 0.5
    assert pair_credit(SequenceScore(-6.0, 2), SequenceScore(-6.0, 3), "sum") == 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_model_raises(value):
    table = torch.zeros(10, 10)
    table[5] = value
    with pytest.raises(ScoringError, match=r"1 of 2 log-likelihoods are NaN or infinite, the first: Sequence 1"):
        score_sequences(BigramModel(table), [[0, 6, 7], [0, 5, 6]], scored_ids=range(4, 8))


def test_sequence_without_targets_raises(llama):
    with pytest.raises(ScoringError, match=r"Sequence 1 of 2 ids holds no target"):
        score_sequences(llama, [[1, 7, 9], [1, 7]], scored_ids=UNITS)


def test_sequence_beyond_the_context_raises(llama):
    with pytest.raises(ScoringError, match=r"has 131 ids; the model's context is at most 128"):
        score_sequences(llama, [[1, *[9] * 130]], scored_ids=UNITS)


@pytest.mark.parametrize("arguments", [{"vocabulary": "units"}, {"batch_size": 0}, {"first_scored": 0}])
def test_bad_arguments_raise(llama, arguments):
    with pytest.raises(ValueError, match="vocabulary|at least 1"):
        score_sequences(llama, [[1, 9]], scored_ids=UNITS, **arguments)


def tiny_layout(**options):
    """8 ids: BOS 0, EOS 1, [Text] 2, [Speech] 3, units 4..7; with prosody 11 ids: pitch 8 and 9, style 10."""
    ids = {"text_offset": 2, "text_vocab_size": 2, "text_marker_id": 2, "speech_marker_id": 3, "unit_offset": 4}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    return TinyWaveConfig(**{"vocab_size": 8, "num_units": 4, **ids, **special, **options})


def prosody_layout(**options):
    prosody = {"pitch_offset": 8, "num_pitch_tokens": 2, "style_offset": 10, "num_style_tokens": 1}
    return tiny_layout(vocab_size=11, **prosody, **options)


# 10 frames of units, 5 of pitch and one of style: 0.4 s. Pitch changes at 0.16 s, just before unit frame 4.
SPEECH = SpeechStreams([0, 0, 0, 0, 1, 1, 1, 2, 2, 2], pitch=[0, 0, 1, 1, 1], style=[0])
MERGED = [10, 8, 4, 9, 5, 6]


def test_format_of_a_config():
    config = TinyWaveConfig.from_preset("nano-student")
    form = SpeechSequenceFormat(config)
    offset = config.unit_offset
    assert form.speech_to_sequence([3, 3, 3, 0, 499, 499]) == [
        config.bos_token_id, config.speech_marker_id, offset + 3, offset, offset + 499,
    ]  # fmt: skip
    assert form.scored_ids == list(range(offset, offset + 500))
    raw = SpeechSequenceFormat(config, bos=False, marker=False, deduplicate=False)
    assert raw.speech_to_sequence([3, 3, 0]) == [offset + 3, offset + 3, offset]
    with pytest.raises(ValueError, match="500"):
        form.speech_to_sequence([3, 500])


def test_a_model_reads_the_streams_that_it_has():
    assert SpeechSequenceFormat(prosody_layout()).speech_to_sequence(SPEECH) == [0, 3, *MERGED]
    assert SpeechSequenceFormat(tiny_layout()).speech_to_sequence(SPEECH) == [0, 3, 4, 5, 6]
    document = AlignedDocument(SPEECH.units, ["a"], [0.0], pitch=SPEECH.pitch, style=SPEECH.style)
    assert SpeechSequenceFormat(prosody_layout()).speech_to_sequence(document) == [0, 3, *MERGED]


def test_a_format_says_what_it_reads_and_scores():
    form = SpeechSequenceFormat(prosody_layout(), scored_streams=("style", "unit"))
    assert form.scored_ids == [4, 5, 6, 7, 10]
    assert form.to_record() == {
        "streams": ["unit", "pitch", "style"],
        "scored_streams": ["unit", "style"],
        "scored_ids": {"unit": [4, 7], "style": [10, 10]},
        "deduplicated_streams": ["unit", "pitch"],
        "prefix_ids": [0, 3],
        "closing_ids": [],
        "bos": True,
        "marker": True,
        "eos": False,
    }
    assert SpeechSequenceFormat(tiny_layout(), deduplicate=False).to_record()["deduplicated_streams"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scored_streams": ("unit", "tone")}, r"scored_streams \('unit', 'tone'\); this model has"),
        ({"scored_streams": ()}, r"scored_streams \(\)"),
        ({"deduplicate": False}, "deduplicate=False for a model with pitch or style"),
    ],
)
def test_impossible_formats_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SpeechSequenceFormat(prosody_layout(), **options)


def test_speech_that_the_model_cannot_read_is_named():
    form = SpeechSequenceFormat(prosody_layout())
    with pytest.raises(ScoringError, match=r"Clip 2 cannot be read by this model: the speech has no pitch"):
        speech_to_sequences({"Clip 1": SPEECH, "Clip 2": SpeechStreams([0, 1], style=[0])}, form)
    with pytest.raises(ScoringError, match=r"Clip 1 .* pitch 2 at position 0 is out of range"):
        speech_to_sequences({"Clip 1": SpeechStreams([0, 1], [2], [0])}, form)
    with pytest.raises(ScoringError, match="parsed from ids"):
        speech_to_sequences({"Clip 1": ids_to_streams(MERGED, form.config)}, form)


def test_targets_of_merged_streams_are_those_asked_for():
    # Each id has probability 2^-(1 + id) whatever came before it, so that the sum says which ids were scored.
    logits = -math.log(2) * torch.arange(1, 12.0).expand(11, 11)
    total = math.log(sum(2.0**-n for n in range(1, 12)))
    sequences = [[0, 3, *MERGED]]

    def score(*streams, vocabulary="full"):
        form = SpeechSequenceFormat(prosody_layout(), scored_streams=streams)
        [result] = score_sequences(BigramModel(logits), sequences, scored_ids=form.scored_ids, vocabulary=vocabulary)
        return result

    for streams, ids in {
        ("unit", "pitch", "style"): MERGED,
        ("unit",): [4, 5, 6],
        ("unit", "style"): [10, 4, 5, 6],
    }.items():
        result = score(*streams)
        assert result.num_tokens == len(ids)
        assert result.log_likelihood == pytest.approx(sum(-math.log(2) * (1 + n) - total for n in ids))
    # Among units and style alone: ids 4..7 and 10.
    among = math.log(sum(2.0 ** -(1 + n) for n in (4, 5, 6, 7, 10)))
    restricted = score("unit", "style", vocabulary="scored")
    assert restricted.log_likelihood == pytest.approx(sum(-math.log(2) * (1 + n) - among for n in (10, 4, 5, 6)))


def test_merged_scores_do_not_depend_on_the_batch_size():
    torch.manual_seed(0)
    small = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "initializer_range": 0.4}
    model = LlamaForCausalLM(TinyWaveConfig.from_preset("nano-expressive-student", **small))
    generator = np.random.default_rng(0)
    speech = {
        f"Clip {length}": SpeechStreams(
            generator.integers(500, size=2 * length),
            generator.integers(64, size=length),
            generator.integers(5, size=math.ceil(length / 12.5)),
        )
        for length in (5, 40, 23, 11, 60, 9, 31, 18, 27)
    }
    form = SpeechSequenceFormat(model.config)
    sequences = list(speech_to_sequences(speech, form).values())
    alone, together = (
        score_sequences(model, sequences, scored_ids=form.scored_ids, batch_size=size) for size in (1, 8)
    )
    for one, eight, sequence in zip(alone, together, sequences, strict=True):
        assert one.num_tokens == eight.num_tokens == len(sequence) - 2
        assert abs(one.log_likelihood - eight.log_likelihood) < 1e-5 * one.num_tokens


def test_perplexities_of_known_scores():
    # Perplexities 2 over 2 tokens and 8 over 1 token.
    scores = [SequenceScore(-2 * math.log(2), 2), SequenceScore(-math.log(8), 1)]
    result = PerplexityResult.from_scores(scores, seconds=2.0)
    assert result.token_weighted == pytest.approx(2 ** (5 / 3))
    assert result.utterance_mean == pytest.approx(5.0)
    assert result.bits_per_second == pytest.approx(2.5)


def test_perplexity_counts_seconds_of_raw_units():
    # Uniform over 8 ids: 3 bits a token. 10 raw frames at 25 Hz are 0.4 s, 4 tokens remain.
    form = SpeechSequenceFormat(tiny_layout(), marker=False)
    utterances = [[0, 0, 0, 1, 1], [2, 2, 2, 3, 3]]
    result = score_perplexity(BigramModel(torch.zeros(8, 8)), utterances, sequence_format=form)
    assert result.token_weighted == pytest.approx(8.0)
    assert result.bits_per_second == pytest.approx(12 / 0.4)
    with pytest.raises(ScoringError, match="found 0"):
        score_perplexity(BigramModel(torch.zeros(8, 8)), [], sequence_format=form)


def test_perplexity_of_merged_streams_is_per_token_of_speech():
    # Uniform over 11 ids: 6 tokens in the 0.4 s of 10 unit frames, or the 3 units among them.
    document = AlignedDocument(SPEECH.units, ["a"], [0.0], pitch=SPEECH.pitch, style=SPEECH.style)
    for streams, num_tokens in ((None, 6), (("unit",), 3)):
        form = SpeechSequenceFormat(prosody_layout(), scored_streams=streams)
        result = score_perplexity(BigramModel(torch.zeros(11, 11)), [document], sequence_format=form)
        assert result.token_weighted == pytest.approx(11.0)
        assert result.scores[0].num_tokens == num_tokens
        assert result.bits_per_second == pytest.approx(num_tokens * math.log2(11) / 0.4)
    with pytest.raises(ScoringError, match="Utterance 1 cannot be read by this model: the speech has no style"):
        score_perplexity(BigramModel(torch.zeros(11, 11)), [document, [0, 1]], sequence_format=form)
