"""Manifests and suite accuracies: files, validation, and answers worked out by hand."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaForCausalLM

from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.eval.scoring import ScoringError, pair_credit, score_sequences
from tinywave.eval.sequence_formats import SpeechSequenceFormat
from tinywave.eval.statistics import bootstrap_mean_interval, standard_error
from tinywave.eval.suites import PROSODY_COLUMNS, Pair, SuiteError, evaluate_suite, read_suite, write_suite
from tinywave.tokenization_tinywave import deduplicate, streams_to_ids


def make_pair(index, positive, negative, phenomenon="swap", group=None):
    return Pair(
        id=f"lexical-{index}",
        suite="lexical",
        phenomenon=phenomenon,
        group=group or f"word-{index}",
        positive_units=tuple(positive),
        negative_units=tuple(negative),
        positive_text="barn",
        negative_text="bˈɑɹl",
        voice="hibari/base",
        encoder="0123456789abcdef",
    )


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(0)
    return [
        make_pair(
            index,
            torch.randint(500, (10 + index,), generator=generator).tolist(),
            torch.randint(500, (14,), generator=generator).tolist(),
            phenomenon="swap" if index % 3 else "deletion",
            group=f"word-{index // 2}",
        )
        for index in range(20)
    ]


@pytest.fixture
def prosodic_pairs():
    """Pairs of 24 to 62 unit frames with the pitch and style frames of the same time."""
    generator = torch.Generator().manual_seed(0)

    def streams(num_pitch):
        draws = ((500, 2 * num_pitch), (64, num_pitch), (5, -(-num_pitch * 2 // 25)))
        return [tuple(torch.randint(high, (size,), generator=generator).tolist()) for high, size in draws]

    pairs = []
    for index in range(20):
        positive, negative = streams(12 + index), streams(30 - index)
        prosody = {"positive_pitch": positive[1], "positive_style": positive[2]}
        prosody |= {"negative_pitch": negative[1], "negative_style": negative[2], "encoder": "aa-bb-cc"}
        pairs.append(replace(make_pair(index, positive[0], negative[0]), **prosody))
    return pairs


TINY = {"num_hidden_layers": 1, "hidden_size": 24, "intermediate_size": 32, "initializer_range": 0.4}


@pytest.fixture(scope="module")
def expressive_model():
    torch.manual_seed(0)
    return LlamaForCausalLM(TinyWaveConfig.from_preset("nano-expressive-student", **TINY))


@pytest.fixture
def base_model(expressive_model):
    """The weights of the expressive model, with a configuration that knows units alone."""
    config = expressive_model.config
    expressive_model.config = config.with_streams(["unit"])
    yield expressive_model
    expressive_model.config = config


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(TinyWaveConfig.from_preset("nano-student", **TINY))


def test_round_trip(pairs, tmp_path):
    path = write_suite(pairs, tmp_path / "folder" / "lexical.parquet")
    assert read_suite(path) == pairs
    assert [file.name for file in path.parent.iterdir()] == ["lexical.parquet"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "lexical-1"}, r"Duplicate id 'lexical-1' \(2 times\)"),
        ({"negative_units": ()}, r"Pair 'lexical-0' has no negative half"),
        ({"positive_units": (3, -1)}, r"Pair 'lexical-0' has unit -1 in its positive half"),
        ({"voice": ""}, r"Pair 'lexical-0' has an empty voice"),
        ({"group": None}, r"Pair 'lexical-0' has an empty group"),
        ({"suite": "story"}, r"one suite; found \['lexical', 'story'\]"),
        ({"negative_pitch": (1, 2)}, r"Pair 'lexical-0' has no pitch in its positive half"),
        (
            {"positive_style": (), "negative_style": (1,)},
            r"Pair 'lexical-0' has no positive half: its style are empty",
        ),
        ({"positive_style": (1,), "negative_style": (-1,)}, r"Pair 'lexical-0' has style -1 in its negative half"),
        ({"positive_style": (1,), "negative_style": (1,)}, r"Pair 'lexical-1' has other streams than 'lexical-0'"),
        ({"encoder": "other"}, r"one encoder; found \['0123456789abcdef', 'other'\]"),
    ],
)
def test_invalid_pairs_are_named(pairs, tmp_path, change, message):
    with pytest.raises(SuiteError, match=message):
        write_suite([replace(pairs[0], **change), *pairs[1:]], tmp_path / "suite.parquet")
    assert list(tmp_path.iterdir()) == []


def test_pitch_and_style_have_columns_where_the_pairs_have_them(pairs, prosodic_pairs, tmp_path):
    plain, prosodic = (
        write_suite(pairs, tmp_path / "plain.parquet"),
        write_suite(prosodic_pairs, tmp_path / "p.parquet"),
    )
    assert read_suite(prosodic) == prosodic_pairs
    assert set(pq.read_schema(prosodic).names) - set(pq.read_schema(plain).names) == {
        "positive_pitch", "positive_style", "negative_pitch", "negative_style",
    }  # fmt: skip
    assert prosodic_pairs[0].streams == ("unit", "pitch", "style") and pairs[0].streams == ("unit",)
    half = prosodic_pairs[3].half("negative")
    assert tuple(half.style) == prosodic_pairs[3].negative_style and len(half.units) == 2 * len(half.pitch) == 54


def test_empty_suite_raises(tmp_path):
    with pytest.raises(SuiteError, match="no pairs"):
        write_suite([], tmp_path / "suite.parquet")


def test_missing_half_in_a_file_is_named(pairs, tmp_path):
    path = write_suite(pairs, tmp_path / "suite.parquet")
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[4]["positive_units"] = None
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(SuiteError, match="Pair 'lexical-4' has no positive half"):
        read_suite(path)


def test_unreadable_files_raise(pairs, tmp_path):
    with pytest.raises(SuiteError, match="No suite manifest"):
        read_suite(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(SuiteError, match="not a readable parquet file"):
        read_suite(tmp_path / "text.parquet")
    path = write_suite(pairs, tmp_path / "suite.parquet")
    pq.write_table(pq.read_table(path).drop_columns(["group", "voice"]), path)
    with pytest.raises(SuiteError, match=r"lacks the columns \['group', 'voice'\]"):
        read_suite(path)


def test_result_equals_scores_of_the_halves(model, pairs, tmp_path):
    result = evaluate_suite(model, write_suite(pairs, tmp_path / "suite.parquet"), batch_size=8)
    form = SpeechSequenceFormat(model.config)
    credits = []
    for pair, row in zip(pairs, result.rows, strict=True):
        halves = [form.speech_to_sequence(units) for units in (pair.positive_units, pair.negative_units)]
        positive, negative = (score_sequences(model, [half], scored_ids=form.scored_ids)[0] for half in halves)
        assert row["positive_log_likelihood"] == pytest.approx(positive.log_likelihood, abs=1e-4)
        assert row["negative_num_tokens"] == negative.num_tokens == len(halves[1]) - 2
        credits.append(pair_credit(positive, negative))
    groups = [pair.group for pair in pairs]
    assert result.credits == credits and 0 < sum(credits) < len(credits)
    assert result.accuracy == pytest.approx(sum(credits) / 20) and result.n == 20
    assert result.ci95 == bootstrap_mean_interval(credits, groups)
    assert result.standard_error == standard_error(credits, groups)
    deletions = [credit for pair, credit in zip(pairs, credits, strict=True) if pair.phenomenon == "deletion"]
    assert result.accuracy_by_phenomenon["deletion"] == pytest.approx(sum(deletions) / len(deletions))


def test_mean_and_sum_are_both_recorded(model):
    # The longer half has the better mean here and always the worse sum of nearly uniform probabilities.
    generator = torch.Generator().manual_seed(1)
    pairs = [
        make_pair(
            index,
            torch.randint(500, (40,), generator=generator).tolist(),
            torch.randint(500, (4,), generator=generator).tolist(),
        )
        for index in range(10)
    ]
    by_mean, by_sum = (evaluate_suite(model, pairs, normalisation=name) for name in ("mean", "sum"))
    assert by_mean.accuracy_by_normalisation == by_sum.accuracy_by_normalisation
    assert by_mean.accuracy == by_mean.accuracy_by_normalisation["mean"] > 0
    assert by_sum.accuracy == by_mean.accuracy_by_normalisation["sum"] == 0


def test_equal_halves_tie(model):
    result = evaluate_suite(model, [make_pair(0, [1, 2, 3], [1, 1, 2, 3, 3])])
    assert result.accuracy == 0.5
    raw = SpeechSequenceFormat(model.config, deduplicate=False)
    assert evaluate_suite(model, [make_pair(0, [1, 2, 3], [1, 1, 2, 3, 3])], sequence_format=raw).accuracy != 0.5


def test_convention_is_recorded(model, pairs):
    convention = evaluate_suite(model, pairs, vocabulary="scored", seed=5).convention
    assert convention["vocabulary"] == "scored" and convention["seed"] == 5 and convention["tie"] == 0.5
    assert convention["sequence"]["bos"] and convention["sequence"]["marker"]
    assert convention["sequence"]["deduplicated_streams"] == convention["sequence"]["scored_streams"] == ["unit"]
    assert convention["sequence"]["prefix_ids"] == [1, 511]
    assert convention["normalisation"] == "mean" and convention["encoder"] == "0123456789abcdef"


def test_eos_is_a_target_where_the_format_has_it(model, pairs):
    form = SpeechSequenceFormat(model.config, eos=True)
    closed, plain = evaluate_suite(model, pairs, sequence_format=form), evaluate_suite(model, pairs)
    assert closed.convention["targets"] == "tokens of the scored streams and EOS; BOS and markers are not scored"
    assert closed.convention["sequence"]["closing_ids"] == [2]
    for with_eos, without in zip(closed.rows, plain.rows, strict=True):
        assert with_eos["positive_num_tokens"] == without["positive_num_tokens"] + 1
        assert with_eos["positive_log_likelihood"] < without["positive_log_likelihood"]


def test_permuting_the_pairs_changes_nothing(model, pairs):
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(3)).tolist()
    result, permuted = evaluate_suite(model, pairs), evaluate_suite(model, [pairs[index] for index in order])
    assert permuted.rows == [result.rows[index] for index in order]
    assert permuted.accuracy == result.accuracy


@pytest.mark.parametrize("normalisation", ["mean", "sum", "local", "pmi"])
def test_a_random_model_is_at_chance_on_random_pairs(model, normalisation):
    generator = torch.Generator().manual_seed(0)
    halves = torch.randint(500, (150, 2, 12), generator=generator).tolist()
    pairs = [make_pair(index, [7, *positive], [7, *negative]) for index, (positive, negative) in enumerate(halves)]
    result = evaluate_suite(model, pairs, normalisation=normalisation, batch_size=50)
    assert result.ci95[0] <= 0.5 <= result.ci95[1]
    assert result.ci95[1] - result.ci95[0] < 0.2


def successor_pairs(count, generator):
    """Pairs of a grammar in which unit n is followed by n + 1 or n + 3 (of 20); the other half breaks it once."""
    pairs = []
    for index in range(count):
        steps = torch.tensor([1, 3])[torch.randint(2, (14,), generator=generator)]
        place, wrong = (torch.randint(high, (1,), generator=generator).item() for high in (14, 5))
        broken = steps.clone()
        broken[place] = 6 + 2 * wrong
        start = torch.randint(20, (1,), generator=generator)
        halves = [torch.cat([start, start + steps.cumsum(0)]) % 20 for steps in (steps, broken)]
        pairs.append(make_pair(index, *(half.tolist() for half in halves)))
    return pairs


def test_a_model_trained_on_half_of_the_positives_beats_chance_on_the_other_half():
    torch.manual_seed(0)
    model = LlamaForCausalLM(TinyWaveConfig.from_preset("nano-student", **TINY))
    pairs = successor_pairs(240, torch.Generator().manual_seed(0))
    seen, unseen = pairs[:120], pairs[120:]
    assert not {pair.positive_units for pair in seen} & {pair.positive_units for pair in unseen}
    before = evaluate_suite(model, unseen, batch_size=40)
    form = SpeechSequenceFormat(model.config)
    ids = torch.tensor([form.speech_to_sequence(pair.half("positive")) for pair in seen])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = {name: evaluate_suite(model, unseen, normalisation=name, batch_size=40) for name in ("mean", "local")}
    assert before.accuracy < 0.7
    # Both ways of going on are as likely as each other, the break is not: a model of the grammar finds every one.
    assert after["mean"].accuracy > 0.9 and after["mean"].ci95[0] > 0.8
    assert after["local"].accuracy > 0.9


def test_rows_are_written(model, pairs, tmp_path):
    result = evaluate_suite(model, pairs)
    assert pq.read_table(result.write_rows(tmp_path / "rows.parquet")).to_pylist() == result.rows
    assert "rows" not in result.to_record()


def test_units_of_another_encoder_raise(model, pairs):
    with pytest.raises(SuiteError, match="unit of encoder '0123456789abcdef'; the model was trained on .* of 'feed'"):
        evaluate_suite(model, pairs, encoder="feed")


def test_a_pair_that_cannot_be_scored_raises(model, pairs):
    # Without a prefix the first unit has no context: one unit leaves no target.
    form = SpeechSequenceFormat(model.config, bos=False, marker=False)
    with pytest.raises(ScoringError, match="The negative half of pair 'lexical-99' of 1 ids holds no target"):
        evaluate_suite(model, [*pairs, make_pair(99, [1, 2], [3])], sequence_format=form)


def test_an_expressive_model_is_scored_on_merged_streams(expressive_model, prosodic_pairs):
    result = evaluate_suite(expressive_model, prosodic_pairs)
    config = expressive_model.config
    for pair, row in zip(prosodic_pairs, result.rows, strict=True):
        ids = streams_to_ids(pair.half("positive"), config).tolist()
        [score] = score_sequences(expressive_model, [[1, 511, *ids]], scored_ids=range(512, 1081))
        assert row["positive_num_tokens"] == len(ids) == score.num_tokens
        assert row["positive_log_likelihood"] == pytest.approx(score.log_likelihood, abs=1e-4)
    assert result.convention["sequence"]["streams"] == ["unit", "pitch", "style"]
    assert result.convention["sequence"]["scored_ids"] == {
        "unit": [512, 1011], "pitch": [1012, 1075], "style": [1076, 1080],
    }  # fmt: skip


def test_units_alone_can_be_scored_among_pitch_and_style(expressive_model, prosodic_pairs):
    form = SpeechSequenceFormat(expressive_model.config, scored_streams=("unit",))
    result = evaluate_suite(expressive_model, prosodic_pairs, sequence_format=form)
    assert result.convention["sequence"]["scored_streams"] == ["unit"]
    for pair, row in zip(prosodic_pairs, result.rows, strict=True):
        assert row["negative_num_tokens"] == len(deduplicate(pair.negative_units)[0])
    # The units are read together with pitch and style: another style changes their score.
    pair = prosodic_pairs[0]
    other = replace(pair, positive_style=tuple((style + 1) % 5 for style in pair.positive_style))
    [row], [changed] = (
        evaluate_suite(expressive_model, [item], sequence_format=form, batch_size=1).rows for item in (pair, other)
    )
    assert row["negative_log_likelihood"] == changed["negative_log_likelihood"]
    assert abs(row["positive_log_likelihood"] - changed["positive_log_likelihood"]) > 1e-3


def test_a_model_of_units_reads_the_units_of_the_same_manifest(base_model, prosodic_pairs):
    plain = [replace(pair, **dict.fromkeys(PROSODY_COLUMNS), encoder="aa") for pair in prosodic_pairs]
    result = evaluate_suite(base_model, prosodic_pairs, encoder="aa")
    assert result.rows == evaluate_suite(base_model, plain).rows
    assert result.convention["sequence"]["streams"] == ["unit"] and result.convention["encoder"] == "aa"


def test_an_encoder_keeps_its_name_whatever_is_in_it(base_model, prosodic_pairs):
    plain = [replace(pair, **dict.fromkeys(PROSODY_COLUMNS), encoder="mhubert-base-25hz") for pair in prosodic_pairs]
    assert evaluate_suite(base_model, plain).convention["encoder"] == "mhubert-base-25hz"


def test_the_encoders_of_the_streams_that_are_read_have_to_agree(base_model, prosodic_pairs):
    for encoder in ("aa", "aa-xx-yy"):
        evaluate_suite(base_model, prosodic_pairs, encoder=encoder)
    with pytest.raises(SuiteError, match="holds unit of encoder 'aa-bb-cc'; the model was trained on speech of 'bb'"):
        evaluate_suite(base_model, prosodic_pairs, encoder="bb")


@pytest.mark.parametrize("encoder", ["aa", "aa-bb", "aa-bb-xx", "xx-bb-cc"])
def test_an_expressive_model_needs_every_encoder(expressive_model, prosodic_pairs, encoder):
    evaluate_suite(expressive_model, prosodic_pairs[:1], encoder="aa-bb-cc")
    with pytest.raises(
        SuiteError, match=f"unit, pitch, style of encoder 'aa-bb-cc'; the model was trained on speech of '{encoder}'"
    ):
        evaluate_suite(expressive_model, prosodic_pairs[:1], encoder=encoder)


def test_a_model_of_units_and_pitch_reads_these(expressive_model, prosodic_pairs):
    config = expressive_model.config
    try:
        expressive_model.config = config.with_streams(["unit", "pitch"])
        result = evaluate_suite(expressive_model, prosodic_pairs, encoder="aa-bb")
        with pytest.raises(SuiteError, match="the model was trained on speech of 'aa-cc'"):
            evaluate_suite(expressive_model, prosodic_pairs, encoder="aa-cc")
    finally:
        expressive_model.config = config
    assert result.convention["sequence"]["streams"] == ["unit", "pitch"]


def test_a_manifest_without_a_stream_that_the_model_reads_is_refused(expressive_model, pairs):
    with pytest.raises(SuiteError, match="Suite 'lexical' has no pitch and style tokens, which the model requires"):
        evaluate_suite(expressive_model, pairs)


def test_a_half_that_the_model_cannot_read_is_named(expressive_model, prosodic_pairs):
    broken = [*prosodic_pairs[:-1], replace(prosodic_pairs[-1], negative_pitch=(64,))]
    with pytest.raises(ScoringError, match="The negative half of pair 'lexical-19' cannot be read .* pitch 64"):
        evaluate_suite(expressive_model, broken)
