"""The `evaluate` modules: their examples run, and they give the numbers of every other way to score."""

import doctest
import json
import math
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import evaluate
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from gradio_client import Client, handle_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.eval.evaluation_callback import SuiteEvaluationCallback
from tinywave.eval.metric_inputs import pairs_to_columns, read_scores
from tinywave.eval.result_records import write_pairs
from tinywave.eval.scoring import ScoringError, score_perplexity
from tinywave.eval.sequence_formats import SpeechSequenceFormat, UnitSequenceFormat
from tinywave.eval.suites import Pair, evaluate_suite, read_suite, write_suite
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.processing_tinywave import TinyWaveProcessor

ROOT = Path(__file__).resolve().parent.parent
METRICS = ROOT / "eval" / "metrics"
NAMES = sorted(path.name for path in METRICS.iterdir() if path.is_dir())
PART_OF_MODULE = {
    "swuggy": "6-20",
    "sblimp": "agreement",
    "salmon": "rir_consistency",
    "storycloze": "topic",
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")


def page_case(name, folder):
    """What a page is given, some of what it answers worked out by hand, and what it refuses with which words."""
    if name == "stsp":
        wrong = {"Write two sentiments on each line": ["positive"]}
        return ["positive positive\nnegative neutral"], {"accuracy": 0.5, "n": 2}, wrong
    if name == "generative_perplexity":
        return ["one two three\nfour five"], {"n": 2}, {"empty|at least one": [""]}
    row = {"id": "0", "voice": "A", "group": "0", "part": PART_OF_MODULE.get(name), "subtype": "verb"}
    numbers = {"positive_sum": -10.0, "positive_count": 5, "negative_sum": -20.0, "negative_count": 5}
    rows = [row | numbers, row | numbers | {"id": "1", "group": "1", "positive_sum": -30.0}]
    expected = {"accuracy": 0.5, "num_pairs": 2}
    if name == "normalized_perplexity":
        rows, expected = [{"id": "0", "sum": -8.0, "count": 4, "seconds": 2.0}], {"n": 1, "num_tokens": 4}
    path, short = folder / "scores.jsonl", folder / "short.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    short.write_text(json.dumps({"id": "0"}) + "\n")
    options = [] if name == "normalized_perplexity" else ["mean"]
    wrong = {"Choose a file first": [None, *options], "sum": [handle_file(short), *options]}
    return [handle_file(path), *options], expected, wrong


def load(name, config_name=None):
    return evaluate.load(str(METRICS / name), config_name or ("spoken" if name == "storycloze" else None))


def make_pairs(part, count=10, voices=("A",), seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 16, (count * len(voices), 2), generator=generator).tolist()
    halves = [[torch.randint(500, (n,), generator=generator).tolist() for n in pair] for pair in lengths]
    return [
        Pair(f"{i // len(voices)}/{voice}", "suite", part, f"word-{i // len(voices) // 2}", tuple(positive),
             tuple(negative), "right", "wrong", voice, "codec")
        for i, (positive, negative) in enumerate(halves)
        for voice in [voices[i % len(voices)]]
    ]  # fmt: skip


TINY = {"num_hidden_layers": 1, "hidden_size": 24, "intermediate_size": 32, "initializer_range": 0.4}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TinyWaveForCausalLM(TinyWaveConfig.from_preset("nano-student", **TINY)).eval()


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_run_and_are_those_of_the_card(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    card = METRICS / name / "README.md"
    finished = doctest.testfile(str(card), module_relative=False, encoding="utf-8")
    assert finished.failed == 0 and finished.attempted > 3
    prompts = [
        [line.strip() for line in text.splitlines() if line.strip().startswith((">>>", "..."))]
        for text in (card.read_text(encoding="utf-8"), load(name).inputs_description)
    ]
    assert prompts[0] == prompts[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_a_space(name):
    front_matter, card = (METRICS / name / "README.md").read_text(encoding="utf-8").split("---\n")[1:3]
    fields = yaml.safe_load(front_matter)
    assert fields["sdk"] == "gradio" and {"evaluate", "metric"} <= set(fields["tags"])
    assert (METRICS / name / fields["app_file"]).is_file() and (METRICS / name / "requirements.txt").is_file()
    for heading in ("Convention", "Inputs", "Output", "Example", "Limits", "Citation"):
        assert f"## {heading}" in card


@pytest.mark.parametrize("name", NAMES)
def test_the_page_computes_what_the_module_does(name, tmp_path):
    """The app as a Space runs it, from a folder of another name, asked over HTTP."""
    shutil.copytree(METRICS / name, tmp_path / "app")
    page = runpy.run_path(str(tmp_path / "app" / "app.py"))["page"]
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", ssr_mode=False)
    try:
        client = Client(address, verbose=False)
        given, expected, wrong = page_case(name, tmp_path)
        result = client.predict(*given, api_name="/score")
        assert {key: result[key] for key in expected} == expected
        for message, inputs in wrong.items():
            with pytest.raises(Exception, match=message):
                client.predict(*inputs, api_name="/score")
    finally:
        page.close()


@pytest.mark.parametrize("name", PART_OF_MODULE)
def test_module_suite_and_callback_give_the_same_numbers(name, model, tmp_path):
    manifest = write_suite(make_pairs(PART_OF_MODULE[name]), tmp_path / "suite.parquet")
    model.save_pretrained(tmp_path / "model")
    expected = evaluate_suite(model, manifest)
    columns = pairs_to_columns(name, read_suite(manifest))
    for given in (model, tmp_path / "model"):
        result = load(name).compute(**columns, model=given)
        assert result["accuracy"] == expected.accuracy and result["n"] == result["num_pairs"] == expected.n
        assert result["ci95"] == expected.ci95 and result["standard_error"] == expected.standard_error
        assert result["convention"].items() >= {
            name: expected.convention[name] for name in ("sequence", "targets", "normalisation", "vocabulary", "tie")
        }.items()  # fmt: skip
    trainer = Trainer(model, TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, report_to="none"),
                      eval_dataset=[{"input_ids": [1, 2], "labels": [1, 2]}])  # fmt: skip
    SuiteEvaluationCallback({"suite": manifest}).attach(trainer)
    metrics = trainer.evaluate()
    assert metrics["eval_suite_accuracy"] == expected.accuracy
    assert [metrics["eval_suite_ci95_low"], metrics["eval_suite_ci95_high"]] == expected.ci95
    assert metrics["eval_suite_standard_error"] == expected.standard_error


def test_perplexity_is_that_of_the_scorer(model):
    utterances = [pair.positive_units for pair in make_pairs("oov", 5)]
    expected = score_perplexity(model, utterances, sequence_format=SpeechSequenceFormat(model.config))
    ids = [str(index) for index in range(5)]
    result = load("normalized_perplexity").compute(id=ids, speech=utterances, model=model)
    for name in ("token_weighted", "utterance_mean", "bits_per_second"):
        assert result[name] == getattr(expected, name)
    assert result["ci95"][0] < result["token_weighted"] < result["ci95"][1]
    seconds = [len(utterance) / model.config.unit_rate for utterance in utterances]
    numbers = {"sum": [score.log_likelihood for score in expected.scores], "seconds": seconds}
    numbers["count"] = [score.num_tokens for score in expected.scores]
    given = load("normalized_perplexity", "scores").compute(id=ids, **numbers)
    assert given["token_weighted"] == result["token_weighted"] and given["ci95"] == result["ci95"]
    assert given["bits_per_second"] == pytest.approx(result["bits_per_second"])


def test_voices_are_averaged_and_the_pairs_are_those_of_the_suite(model):
    pairs = make_pairs("6-20", 8, voices=("A", "B", "C"))[:-2]
    expected = evaluate_suite(model, pairs)
    result = load("swuggy").compute(**pairs_to_columns("swuggy", pairs), model=model)
    means = [sum(chunk) / len(chunk) for chunk in (expected.credits[i : i + 3] for i in range(0, 22, 3))]
    assert result["num_pairs"] == 22 and result["n"] == 8
    assert result["accuracy"] == pytest.approx(sum(means) / 8) and result["accuracy"] != expected.accuracy


@pytest.mark.parametrize("normalisation", ["mean", "sum"])
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_written_scores_give_the_result_of_the_model(model, tmp_path, normalisation, suffix):
    pairs = [replace(pair, id=pair.id.partition("/")[0]) for pair in make_pairs("6-20", 12)]
    expected = load("swuggy").compute(**pairs_to_columns("swuggy", pairs), model=model, normalisation=normalisation)
    path = write_pairs([evaluate_suite(model, pairs)], tmp_path / "pairs.parquet")
    if suffix == ".jsonl":
        table = pq.read_table(path).to_pandas()
        path = tmp_path / "pairs.jsonl"
        table.to_json(path, orient="records", lines=True, double_precision=15)
    result = load("swuggy", "scores").compute(**read_scores("swuggy", path), normalisation=normalisation)
    assert {name: result[name] for name in result if name != "convention"} == {
        name: expected[name] for name in expected if name != "convention"
    }
    assert result["convention"]["scores"] == "given" and result["convention"]["normalisation"] == normalisation


def test_pairs_of_several_suites_or_without_counts_are_refused(model, tmp_path):
    results = [evaluate_suite(model, make_pairs("oov", 2)), evaluate_suite(model, make_pairs("oov", 2))]
    path = write_pairs([replace(results[0], suite="other"), results[1]], tmp_path / "pairs.parquet")
    with pytest.raises(ValueError, match=r"holds the suites \['other', 'suite'\]; keep the rows of one"):
        read_scores("swuggy", path)
    (tmp_path / "pairs.jsonl").write_text('{"id": 1, "group": 1, "part": "oov", "positive_sum": -1.0}\n')
    with pytest.raises(ValueError, match=r"lacks the columns \['positive_count', 'negative_sum', 'negative_count'\]"):
        read_scores("swuggy", tmp_path / "pairs.jsonl")


def test_numbers_may_serve_as_ids(tmp_path):
    rows = [
        {"id": id_, "group": id_, "part": "oov", "positive_sum": -1, "negative_sum": total}
        | {"positive_count": 1, "negative_count": 1}
        for id_, total in ((1, -2), (2, -1))
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = read_scores("swuggy", tmp_path / "pairs.jsonl")
    assert columns["id"] == columns["group"] == ["1", "2"] and columns["voice"] == ["-", "-"]
    assert load("swuggy", "scores").compute(**columns)["accuracy"] == 0.75


def test_voices_and_subtypes_stand_in_the_ids_of_released_suites(model, tmp_path):
    pairs = [
        replace(pair, id=f"agreement/verb/{pair.id}", group=f"agreement/verb/{pair.id.partition('/')[0]}")
        for pair in make_pairs("agreement", 6, voices=("A", "B"))
    ]
    columns = pairs_to_columns("sblimp", pairs)
    assert {name: columns[name][3] for name in ("id", "voice", "part", "subtype")} == {
        "id": "1", "voice": "B", "part": "agreement", "subtype": "verb",
    }  # fmt: skip
    expected = load("sblimp").compute(**columns, model=model)
    assert expected["n"] == 6 and expected["num_pairs"] == 12
    path = write_pairs([evaluate_suite(model, pairs)], tmp_path / "pairs.parquet")
    result = load("sblimp", "scores").compute(**read_scores("sblimp", path))
    assert {name: result[name] for name in result if name != "convention"} == {
        name: expected[name] for name in expected if name != "convention"
    }


def test_the_part_that_differs_can_decide(model):
    pairs = make_pairs("rir_consistency")
    shared = [replace(pair, negative_units=pair.positive_units[:3] + pair.negative_units) for pair in pairs]
    for normalisation in ("local", "pmi"):
        result = load("salmon").compute(**pairs_to_columns("salmon", shared), model=model, normalisation=normalisation)
        assert result["accuracy"] == evaluate_suite(model, shared, normalisation=normalisation).accuracy
        assert result["convention"]["normalisation"] == normalisation
        assert ("window" in result["convention"]) == (normalisation == "local")


def test_items_added_one_by_one_are_the_columns(model):
    columns = pairs_to_columns("sblimp", make_pairs("agreement", 4))
    assert columns["part"] == ["agreement"] * 4 and columns["subtype"] == ["-"] * 4
    at_once, apart, batches = load("sblimp"), load("sblimp"), load("sblimp")
    for index in range(4):
        apart.add(**{name: column[index] for name, column in columns.items()})
        batches.add_batch(**{name: column[index : index + 1] for name, column in columns.items()})
    expected = at_once.compute(**columns, model=model)
    assert apart.compute(model=model) == batches.compute(model=model) == expected


def test_pitch_and_style_are_read_by_the_models_that_have_them():
    torch.manual_seed(0)
    model = LlamaForCausalLM(TinyWaveConfig.from_preset("nano-expressive-student", **TINY))
    pairs = read_suite(ROOT / "assets" / "suites" / "story.parquet")[:4]
    expected = evaluate_suite(model, pairs)
    assert expected.convention["sequence"]["streams"] == ["unit", "pitch", "style"]
    result = load("storycloze", "topic").compute(**pairs_to_columns("storycloze", pairs), model=model)
    assert (result["accuracy"], result["ci95"]) == (expected.accuracy, expected.ci95)
    assert result["convention"]["sequence"] == expected.convention["sequence"]
    assert (result["convention"]["direction"], result["convention"]["configuration"]) == ("S->S", "topic")
    dicts = {half: [vars(pair.half(half)) | {"ids": None} for pair in pairs] for half in ("positive", "negative")}
    dicts = {half: [{k: v for k, v in row.items() if k != "ids"} for row in rows] for half, rows in dicts.items()}
    labels = {"id": [pair.id for pair in pairs], "group": [pair.group for pair in pairs], "context": [[]] * 4}
    assert load("storycloze", "topic").compute(**labels, **dicts, model=model) == result


def test_other_models_are_read_by_a_format(model):
    torch.manual_seed(0)
    settings = {"vocab_size": 502, "num_attention_heads": 2, "num_key_value_heads": 2} | TINY
    llama = LlamaForCausalLM(LlamaConfig(**settings)).eval()
    pairs = make_pairs("6-20", 6)
    columns, unit_format = pairs_to_columns("swuggy", pairs), UnitSequenceFormat(range(2, 502), bos_token_id=1)
    result = load("swuggy").compute(**columns, model=llama, sequence_format=unit_format)
    assert result["accuracy"] == evaluate_suite(llama, pairs, sequence_format=unit_format).accuracy
    with pytest.raises(ValueError, match="does not define the meaning of its ids"):
        load("swuggy").compute(**columns, model=llama)
    with pytest.raises(ValueError, match="found `deduplicate` and `sequence_format`"):
        load("swuggy").compute(**columns, model=llama, sequence_format=unit_format, deduplicate=False)
    repeats = load("swuggy").compute(**columns, model=model, deduplicate=False)
    assert repeats["convention"]["sequence"]["deduplicated_streams"] == []


@pytest.fixture(scope="module")
def bilingual():
    """A tiny model of units and text, and the tokenizer whose ids it has."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "assets" / "teacher")
    config = TinyWaveConfig.from_pretrained(ROOT / "assets" / "teacher").with_streams(["unit"])
    for name, value in TINY.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    return TinyWaveForCausalLM(config).eval(), tokenizer


STORIES = {
    "T": ["A dog ran home.", "The cook cut the bread."],
    "S": [[3, 3, 7, 9, 9], [11, 12, 12, 400]],
}
ENDINGS = {
    "T": [["It ate its food.", "The ship left."], ["She ate a piece.", "The moon was red and round."]],
    "S": [[[9, 9, 20, 21, 21], [30, 31]], [[400, 5, 5, 8], [77, 78, 79, 79, 80]]],
}


def naive_score(model, tokenizer, context, ending, scored):
    """L and N from the processor's ids, one row at a time."""
    processor = TinyWaveProcessor.from_config(model.config, tokenizer)
    segments = [("speech" if isinstance(part, list) else "text", part) for part in (context, ending)]
    if segments[0][0] == segments[1][0]:
        joined = f"{context} {ending}" if isinstance(context, str) else context + ending
        segments = [(segments[0][0], joined)]
    ids = processor(segments)["input_ids"]
    alone = processor([("speech" if isinstance(context, list) else "text", context)])["input_ids"]
    logits = model(ids).logits[0, :-1].double().log_softmax(-1)
    special = {model.config.bos_token_id, model.config.speech_marker_id, model.config.text_marker_id}
    first = alone.shape[1] if scored == "ending" else 1
    losses = [logits[i - 1, t].item() for i, t in enumerate(ids[0].tolist()) if i >= first and t not in special]
    return sum(losses), len(losses)


@pytest.mark.parametrize("scored", ["item", "ending"])
@pytest.mark.parametrize("direction", ["S->S", "T->T", "S->T", "T->S"])
def test_stories_of_every_direction_are_scored_as_by_hand(bilingual, direction, scored):
    model, tokenizer = bilingual
    contexts, endings = STORIES[direction[0]], ENDINGS[direction[-1]]
    columns = {"id": ["a", "b"], "group": ["a", "b"], "context": contexts}
    columns |= {half: [pair[index] for pair in endings] for index, half in enumerate(("positive", "negative"))}
    for normalisation in ("mean", "sum"):
        expected = []
        for context, halves in zip(contexts, endings, strict=True):
            with torch.no_grad():
                scores = [naive_score(model, tokenizer, context, half, scored) for half in halves]
            values = [total / count if normalisation == "mean" else total for total, count in scores]
            assert not math.isclose(*values, rel_tol=1e-6)
            expected.append(float(values[0] > values[1]))
        result = load("storycloze").compute(
            **columns, model=model, tokenizer=tokenizer, scored=scored, normalisation=normalisation
        )
        assert result["accuracy"] == sum(expected) / 2
        convention = result["convention"]
        assert (convention["direction"], convention["scored"]) == (direction, scored)
        assert convention["targets"].startswith("text") == ("T" in direction)


def test_stories_that_cannot_be_scored_are_named(bilingual):
    model, tokenizer = bilingual
    story = {"id": ["a"], "group": ["a"], "context": ["A dog ran home."], "positive": ["It ate."], "negative": ["No."]}
    cases = [
        (story, {"scored": "tail"}, "Unknown scored 'tail'"),
        (story, {"tokenizer": None}, "no tokenizer; give the `tokenizer`"),
        (story | {"negative": [[1, 2]]}, {}, r"directions \['T->S', 'T->T'\]; expected one"),
        (story | {"negative": ["[Hu7]"]}, {}, "The negative half of story 'a' cannot be read by this model"),
        (story | {"negative": [""]}, {"scored": "ending"}, "The negative half of story 'a' .* holds no target"),
        (story, {"sequence_format": SpeechSequenceFormat(model.config, marker=False)}, "read with BOS and markers"),
    ]
    for columns, options, message in cases:
        with pytest.raises(ValueError, match=message):
            load("storycloze").compute(**columns, **({"model": model, "tokenizer": tokenizer} | options))


def test_bad_columns_are_refused_before_they_are_written(model):
    columns = pairs_to_columns("salmon", make_pairs("rir_consistency", 3))
    cases = [
        ({"group": None}, r"The columns \['group'\] are missing"),
        ({"group": ["a"]}, r"different lengths: \{'id': 3, 'group': 1,"),
        ({name: [] for name in columns}, "are empty; expected at least one item"),
        ({"positive": ["dog", "cat", "cow"]}, "Row 0 of 'positive' is text; expected speech"),
        ({"positive": [[1], [1.5], [2]]}, "Row 1 of 'positive' is not speech"),
        ({"id": ["a", "a", "b"]}, "Duplicate part / id: rir_consistency / a"),
        ({"part": ["echo"] * 3}, "SALMon has no part 'echo'"),
        ({"negative": [[1], [2], [999]]}, "The negative half of pair 'rir_consistency/2' cannot be read"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            load("salmon").compute(**(columns | change), model=model)
    with pytest.raises(ValueError, match="found no model; pass `model=`"):
        load("salmon").compute(**columns)
    with pytest.raises(FileNotFoundError, match="nowhere is no folder with a model, nor a repository"):
        load("salmon").compute(**columns, model="nowhere")
    with pytest.raises(ValueError, match="Unknown normalisation 'median'"):
        load("salmon").compute(**columns, model=model, normalisation="median")
    with pytest.raises(TypeError, match="salmon has no keyword 'normalization'; see the keywords on the card"):
        load("salmon").compute(**columns, model=model, normalization="sum")
    with pytest.raises(TypeError, match="normalized_perplexity has no keyword 'normalisation'"):
        load("normalized_perplexity").compute(id=["a"], speech=[[1, 2]], model=model, normalisation="sum")
    with pytest.raises(ValueError, match="storycloze has no configuration 'default'; expected one of"):
        evaluate.load(str(METRICS / "storycloze"))


@pytest.mark.parametrize(("total", "count"), [(float("nan"), 4), (float("-inf"), 4), (-3.0, 0)])
def test_a_score_that_is_no_number_is_named(total, count):
    halves = {"positive_sum": [-2.0], "positive_count": [4], "negative_sum": [total], "negative_count": [count]}
    with pytest.raises(ScoringError, match="The negative half of pair 'a' has log-likelihood"):
        load("salmon", "scores").compute(id=["a"], group=["a"], part=["rir_consistency"], **halves)


def test_generated_texts_are_judged_as_by_hand(bilingual):
    model, tokenizer = bilingual
    texts = ["the dog and the cat and the dog", "a bird sang", "..."]
    result = load("generative_perplexity").compute(predictions=texts, model=model, tokenizer=tokenizer)
    means = []
    for text in texts[:2]:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1].double()
        means.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item())
    assert result["perplexity"]["value"] == pytest.approx(math.exp(sum(means) / 2), rel=1e-5)
    # 7 of 8 words and 4 of 7 word pairs come again in the first text, none in the second.
    assert result["auto_bleu_2"]["value"] == pytest.approx(math.sqrt(7 / 8 * 4 / 7) / 2)
    assert (result["n"], result["perplexity"]["n"], result["num_empty_transcripts"]) == (3, 2, 1)
    silent = load("generative_perplexity").compute(predictions=["..."])
    assert silent["perplexity"] == {"not_measured": "no judge was given"}
    assert silent["auto_bleu_2"] == {"not_measured": "no word was heard"}
    with pytest.raises(ValueError, match="found a model but no tokenizer"):
        load("generative_perplexity").compute(predictions=texts, model=model)


def test_sentiment_labels_are_checked():
    stsp = load("stsp")
    stsp.add(prediction=None, reference="neutral")
    stsp.add(prediction="neutral", reference="neutral")
    result = stsp.compute()
    assert (result["accuracy"], result["num_unlabelled"]) == (0.5, 1)
    with pytest.raises(ValueError, match="Found the label 'glad'; expected one of"):
        load("stsp").compute(predictions=["glad"], references=["neutral"])
    with pytest.raises(ValueError, match=r"The columns \['references'\] are missing"):
        load("stsp").compute(predictions=["neutral"], references=None)
