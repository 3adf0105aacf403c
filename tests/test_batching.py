"""Many prompts at once say what each says alone, whatever the others are and wherever they end."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from tinywave.batching_tinywave import Prompt, continue_many, prompt_seed
from tinywave.benchmarks import batched_decoding
from tinywave.cli import main as command_line
from tinywave.cli.shipped import AUDIO, CODEC, TEACHER
from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.data.audio_io import load_audio, write_audio
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.processing_tinywave import TinyWaveProcessor
from tinywave.speech_encoder_tinywave import SpeechEncoder

CLIPS = sorted((AUDIO / "librivox").glob("*.flac"))
GREEDY = {"output_modality": "speech", "do_sample": False}
SAMPLED = {"output_modality": "speech", "do_sample": True, "top_k": 25, "temperature": 0.9}


def load_teacher(**options) -> TinyWaveForCausalLM:
    """The first layers of the shipped teacher, on units."""
    model = TinyWaveForCausalLM.from_pretrained(TEACHER, dtype="float32", num_hidden_layers=3, **options).eval()
    model.config = model.config.with_streams(["unit"])
    return model


@pytest.fixture(scope="module")
def teacher() -> TinyWaveForCausalLM:
    return load_teacher()


@pytest.fixture(scope="module")
def prompts(teacher) -> list[Prompt]:
    """Real speech of 0.4 to 3 s in units, in no order of length, with 1 to 40 tokens to add."""
    encoder = SpeechEncoder.from_pretrained(CODEC / "speech_encoder").eval()
    processor = TinyWaveProcessor.from_config(teacher.config, TinyWaveProcessor.from_pretrained(TEACHER).tokenizer)
    units = encoder.encode([load_audio(path)[:48_000] for path in CLIPS[:3]])
    pieces = [units[index % 3][:length] for index, length in enumerate((30, 75, 10, 60, 45, 20, 74))]
    rows = [processor([("speech", piece)], output_modality="speech")["input_ids"][0] for piece in pieces]
    lengths = (40, 6, 25, 1, 33, 12, 18)
    return [
        Prompt(place, row, {"max_new_tokens": new}) for place, (row, new) in enumerate(zip(rows, lengths, strict=True))
    ]


def alone(model, prompt: Prompt, seed: int = 0, **options) -> list[int]:
    """What `generate` adds to one prompt."""
    torch.manual_seed(prompt_seed(seed, prompt.name))
    ids = model.generate(prompt.input_ids[None], **{**options, **prompt.options})
    return ids[0, len(prompt.input_ids) :].tolist()


def together(model, prompts, batch_size: int, **options) -> dict[int, list[int]]:
    return {name: ids.tolist() for name, ids in continue_many(model, prompts, batch_size, **options)}


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_every_prompt_gets_its_own_likeliest_ids(teacher, prompts, batch_size):
    # A unit of the first answer for EOS, so that rows end early, and processors that look at the ids so far.
    options = {**GREEDY, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3}
    eos = alone(teacher, prompts[0], **options)[10]
    options["eos_token_id"] = eos
    expected = {prompt.name: alone(teacher, prompt, **options) for prompt in prompts}
    ended = [ids[-1] == eos for ids in expected.values()]
    assert any(ended) and not all(ended)
    assert together(teacher, prompts, batch_size, **options) == expected


def test_the_least_number_of_tokens_counts_from_the_end_of_each_prompt(teacher, prompts):
    (first, *_) = alone(teacher, prompts[1], **GREEDY)
    options = {**GREEDY, "eos_token_id": first, "min_new_tokens": 5}
    several = [prompt for prompt in prompts if prompt.options["max_new_tokens"] > 5]
    assert len(alone(teacher, prompts[1], **{**options, "min_new_tokens": 0})) == 1
    continued = together(teacher, several, 4, **options)
    assert continued == {prompt.name: alone(teacher, prompt, **options) for prompt in several}
    assert all(first not in ids[:5] for ids in continued.values())


def test_what_is_drawn_depends_on_seed_and_name_alone(teacher, prompts):
    expected = {prompt.name: alone(teacher, prompt, seed=3, **SAMPLED) for prompt in prompts}
    for chosen, batch_size in ((prompts, 1), (prompts, 4), (prompts[::-1], 3), (prompts[2:5], 2)):
        continued = together(teacher, chosen, batch_size, seed=3, **SAMPLED)
        assert continued == {prompt.name: expected[prompt.name] for prompt in chosen}
    same = [Prompt(name, prompts[0].input_ids) for name in ("a", "b", 0, "0")]
    others = together(teacher, same, 4, seed=3, max_new_tokens=40, **SAMPLED)
    assert len({tuple(ids) for ids in others.values()}) == 4
    assert others[0] == expected[0] != together(teacher, same, 4, seed=4, max_new_tokens=40, **SAMPLED)[0]


def test_a_row_that_ends_is_given_to_the_next_prompt_at_once(teacher, prompts):
    taken, widths = [], []

    def waiting():
        for index, new in enumerate((2, 9, 3, 4, 1)):
            taken.append(index)
            yield Prompt(index, prompts[index].input_ids, {"max_new_tokens": new})

    handle = teacher.model.register_forward_pre_hook(
        lambda module, args, inputs: widths.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    try:
        order = [(name, list(taken)) for name, _ in continue_many(teacher, waiting(), 2, **GREEDY)]
    finally:
        handle.remove()
    # The first token comes with reading the prompt. Row 0 ends after one step, 2 after two more, 3 after three more,
    # then 4 with its first token, and 1 goes on for two alone.
    assert order == [(0, [0, 1]), (2, [0, 1, 2]), (3, [0, 1, 2, 3]), (4, [0, 1, 2, 3, 4]), (1, [0, 1, 2, 3, 4])]
    steps = [rows for rows, length in widths if length == 1]
    assert steps == [2] * 6 + [1] * 2
    assert [length for _, length in widths if length > 1] == [len(prompts[index].input_ids) for index in range(5)]


def test_rows_of_text_and_speech_open_their_own_modality(prompts):
    torch.manual_seed(0)
    # A wider initialisation makes the continuations of a random model differ from each other.
    sizes = {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 64, "initializer_range": 0.3}
    config = TinyWaveConfig.from_preset("nano-student", **sizes)
    model = TinyWaveForCausalLM(config).eval()
    # Markers are two ids of a thousand.
    bias = {(config.text_marker_id,): 6.0, (config.speech_marker_id,): 6.0}
    options = {"output_modality": "free", "do_sample": True, "sequence_bias": bias, "max_new_tokens": 40}
    texts = [Prompt(name, torch.tensor([1, 510, *range(20, 20 + 3 * name)])) for name in (7, 8, 9)]
    mixed = [*texts, *(prompt._replace(options={}) for prompt in prompts[:3])]
    continued = together(model, mixed, 4, **options)
    assert continued == {prompt.name: alone(model, prompt, **options) for prompt in mixed}
    markers = {config.text_marker_id, config.speech_marker_id}
    assert markers <= set(itertools.chain(*continued.values()))
    assert len({ids[0] for ids in continued.values()}) > 1


def test_other_weights_and_other_attention(prompts):
    chosen, options = prompts[:4], {**GREEDY, "min_new_tokens": 1}
    for model in (load_teacher().quantize(), load_teacher(attn_implementation="eager")):
        expected = {prompt.name: alone(model, prompt, **options) for prompt in chosen}
        assert together(model, chosen, 3, **options) == expected


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    """Heads that share keys and values; wide weights, so that ids depend on what is attended to."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**sizes, **heads, initializer_range=0.5, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return LlamaForCausalLM(config).eval()


@settings(max_examples=20)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 150), st.integers(1, 12)), min_size=1, max_size=7),
    batch_size=st.integers(1, 5),
    number=st.integers(0, 1000),
)
def test_any_lengths_in_any_number_of_rows(llama, lengths, batch_size, number):
    generator = torch.Generator().manual_seed(number)
    prompts = [
        Prompt(name, torch.randint(3, 64, (length,), generator=generator), {"max_new_tokens": new})
        for name, (length, new) in enumerate(lengths)
    ]
    continued = together(llama, prompts, batch_size, do_sample=True)
    assert continued == {prompt.name: alone(llama, prompt, do_sample=True) for prompt in prompts}


def test_what_rows_cannot_do_is_refused(teacher, prompts):
    def ask(*chosen, batch_size=2, **options):
        return together(teacher, chosen or prompts[:1], batch_size, **options)

    with pytest.raises(ValueError, match="batch_size=0; expected at least one row"):
        ask(batch_size=0)
    with pytest.raises(ValueError, match="two prompts named 0"):
        ask(prompts[0], prompts[0])
    with pytest.raises(ValueError, match="found beam_search and num_return_sequences=1"):
        ask(num_beams=2)
    with pytest.raises(ValueError, match="found sample and num_return_sequences=2"):
        ask(num_return_sequences=2, do_sample=True)
    with pytest.raises(ValueError, match="found parallel_heads, which rows of a batch do not support"):
        ask(parallel_heads=True)
    with pytest.raises(ValueError, match="exceed the context of 2048"):
        ask(Prompt(0, prompts[0].input_ids, {"max_new_tokens": 2040}))
    with pytest.raises(ValueError, match="a prompt is empty"):
        ask(Prompt(0, prompts[0].input_ids[:0], {"max_new_tokens": 4}))
    # What has ended before an error has been handed out.
    empty = Prompt(1, prompts[0].input_ids[:0], {"max_new_tokens": 4})
    started = continue_many(teacher, [prompts[0], empty], 1)
    assert len(next(started)[1]) > 0
    with pytest.raises(ValueError, match="a prompt is empty"):
        next(started)


def test_a_recording_in_a_folder_is_continued_the_same_whatever_is_beside_it(tmp_path, capsys):
    folders = [tmp_path / "all", tmp_path / "some"]
    for folder, names in zip(folders, ("abcd", "c"), strict=True):
        folder.mkdir()
        for name in names:
            write_audio(folder / f"{name}.wav", load_audio(CLIPS["abcd".index(name)])[:16_000], 16_000)
    write_audio(folders[0] / "short.wav", np.full(800, 0.1, dtype=np.float32), 16_000)
    options = ["--griffin-lim", "--max-new-tokens", "12", "--min-new-tokens", "4", "--seed", "5"]
    outputs = [tmp_path / f"continued {folder.name}" for folder in folders]
    for folder, output, batch_size, expected in zip(folders, outputs, ("3", "1"), (2, 0), strict=True):
        command = ["generate", "--input-dir", str(folder), "--output-dir", str(output), "--batch-size", batch_size]
        assert command_line.main([*command, *options]) == expected
    # What is too short to be heard is named, and keeps nothing else from being continued.
    assert "short.wav" in capsys.readouterr().err
    assert sorted(path.name for path in outputs[0].iterdir()) == ["a.wav", "b.wav", "c.wav", "d.wav"]
    sounds = [load_audio(output / "c.wav") for output in outputs]
    np.testing.assert_array_equal(*sounds)
    assert all(
        first.read_bytes() != second.read_bytes() for first, second in itertools.combinations(outputs[0].iterdir(), 2)
    )
    # The same command writes what is not there, as the first time, and touches nothing else.
    (outputs[0] / "d.wav").rename(tmp_path / "d.wav")
    (outputs[0] / "a.wav").write_bytes(b"kept")
    command = ["generate", "--input-dir", str(folders[0]), "--output-dir", str(outputs[0]), *options]
    assert command_line.main(command) == 2
    assert (outputs[0] / "a.wav").read_bytes() == b"kept"
    np.testing.assert_array_equal(load_audio(outputs[0] / "d.wav"), load_audio(tmp_path / "d.wav"))


def test_the_benchmark_counts_the_tokens_that_were_asked_for(teacher, prompts):
    short = [prompt._replace(options={"max_new_tokens": 2 + place, "min_new_tokens": 2 + place})
             for place, prompt in enumerate(prompts[:5])]  # fmt: skip
    ways = batched_decoding.ways_of(teacher, short)
    record = batched_decoding.measure_ways(ways, num_tokens=20, repeats=1)
    names = ["generate", *(f"continuous, batch {size}" for size in (1, 4, 16)), "padded, batch 4", "padded, batch 16"]
    assert sorted(record) == sorted(names)
    assert record["generate"]["times_generate"] == 1.0
    for row in record.values():
        ratio = row["tokens_per_cpu_second"] / record["generate"]["tokens_per_cpu_second"]
        assert row["times_generate"] == pytest.approx(ratio)
    computed = {}
    for name, way in ways.items():
        with_width = []
        handle = teacher.model.register_forward_pre_hook(
            lambda module, args, inputs, seen=with_width: seen.append(inputs["input_ids"].shape), with_kwargs=True
        )
        way()
        handle.remove()
        computed[name] = sum(rows for rows, length in with_width)
    # A forward pass says a token in every row: those that were asked for, or in a padded batch as many as the longest.
    assert computed["generate"] == computed["continuous, batch 4"] == 2 + 3 + 4 + 5 + 6
    assert computed["padded, batch 16"] == 5 * 6
    made = batched_decoding.make_prompts(3)
    assert sorted(prompt.options["max_new_tokens"] for prompt in made) == [20, 90, 160]
    assert len({len(prompt.input_ids) for prompt in made}) == 3
