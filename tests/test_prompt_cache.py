"""What was read before is not read again, and what is said stays the same."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from transformers import DynamicCache

from tinywave.benchmarks.conversation_turns import NUM_NEW_TOKENS, hold_conversation
from tinywave.cli.shipped import AUDIO, CODEC, TEACHER
from tinywave.codec_tinywave import SpeechCodec
from tinywave.configuration_tinywave import VocoderConfig
from tinywave.data.audio_io import load_audio
from tinywave.generation_tinywave import stream_ids
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.pipeline_tinywave import TinyWavePipeline
from tinywave.processing_tinywave import TinyWaveProcessor
from tinywave.prompt_cache_tinywave import PromptCache
from tinywave.spaces.studio import PLAIN, Sampling, Studio
from tinywave.speech_encoder_tinywave import SpeechEncoder
from tinywave.vocoder_tinywave import Vocoder

CLIPS = sorted((AUDIO / "librivox").glob("*.flac"))
GREEDY = {"output_modality": "speech", "do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}


@pytest.fixture(scope="module")
def model() -> TinyWaveForCausalLM:
    """The first layers of the shipped teacher, on units."""
    torch.manual_seed(0)
    options = {"dtype": "float32", "num_hidden_layers": 3, "num_parallel_heads": 2}
    model = TinyWaveForCausalLM.from_pretrained(TEACHER, **options).eval()
    model.config = model.config.with_streams(["unit"])
    return model


@pytest.fixture(scope="module")
def encoder() -> SpeechEncoder:
    return SpeechEncoder.from_pretrained(CODEC / "speech_encoder").eval()


@pytest.fixture(scope="module")
def processor(model) -> TinyWaveProcessor:
    return TinyWaveProcessor.from_config(model.config, TinyWaveProcessor.from_pretrained(TEACHER).tokenizer)


@pytest.fixture(scope="module")
def prompts(encoder, processor) -> list[torch.LongTensor]:
    """Real speech of 2 s in units, `(1, length)` each."""
    units = encoder.encode([load_audio(path)[:32_000] for path in CLIPS[:3]])
    return [processor([("speech", row)], output_modality="speech")["input_ids"] for row in units]


@contextmanager
def reading(model):
    """The number of ids of every forward pass of the decoder."""
    lengths = []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, inputs: lengths.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        yield lengths
    finally:
        handle.remove()


@pytest.fixture
def pipeline(model, processor, encoder) -> TinyWavePipeline:
    torch.manual_seed(0)
    vocoder = Vocoder(VocoderConfig(num_units=500, hidden_size=16, duration_hidden_size=16)).eval()
    return TinyWavePipeline(model, processor, SpeechCodec(encoder, vocoder), PromptCache(max_tokens=1000))


@pytest.mark.parametrize("parallel_heads", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_conversation_is_read_from_where_it_is_new(pipeline, model, streamed, parallel_heads):
    """Speech and answer in turns: the second turn reads the last id said, and what is new."""
    options = {"do_sample": False, "min_new_tokens": 12, "max_new_tokens": 12, "parallel_heads": parallel_heads}
    # What repeats would be dropped where the answer becomes part of the prompt.
    options["no_repeat_ngram_size"] = 1
    conversation, cache = [("speech", load_audio(CLIPS[0])[:32_000])], pipeline.prompt_cache
    additions = [[], [3, 5, 3], [7, 1]]
    for added in additions:
        conversation = [*conversation, ("speech", added)] if added else conversation
        pipeline.prompt_cache = None
        (expected,) = pipeline(conversation, **options)
        pipeline.prompt_cache = cache
        with reading(model) as lengths:
            if streamed:
                pieces = list(pipeline.stream(conversation, **options))
                assert pieces[-1].end == expected.end
            else:
                (result,) = pipeline(conversation, **options)
                assert result.streams == expected.streams
        prompt = pipeline.processor([pipeline._prepare(conversation, None, False)[0]], output_modality="speech")[
            "input_ids"
        ]
        assert lengths[0] == (1 + len(added) if added else prompt.shape[1]), "the first pass reads the prompt"
        conversation = [*conversation, ("speech", expected.streams)]
    assert len(cache) == prompt.shape[1] + 12 - 1, "one conversation is kept once, without the id said last"


def test_sampled_ids_are_those_without_a_cache(model, prompts):
    cache, options = PromptCache(1000), {**GREEDY, "do_sample": True, "top_k": 20}
    longer = torch.cat([prompts[0], prompts[1][:, 2:]], dim=1)
    for prompt in (prompts[0], longer, prompts[0]):
        torch.manual_seed(3)
        expected = model.generate(input_ids=prompt, **options)
        torch.manual_seed(3)
        assert torch.equal(cache.generate(model, input_ids=prompt, **options), expected)


def test_the_longest_common_beginning_is_taken_and_nothing_else_is_changed(model, prompts):
    cache = PromptCache(1000)
    first, second = (torch.cat([prompts[0], prompts[place]], dim=1) for place in (1, 2))
    answers = [cache.generate(model, input_ids=prompt, **GREEDY) for prompt in (first, second, prompts[1])]
    for prompt, answer in zip((first, second, prompts[1]), answers, strict=True):
        with reading(model) as lengths:
            # Asked again, only the last id of the prompt is read.
            assert torch.equal(cache.generate(model, input_ids=prompt, **GREEDY), answer)
        assert lengths == [1] * 12
        assert torch.equal(model.generate(input_ids=prompt, **GREEDY), answer)
    with reading(model) as lengths:
        cache.generate(model, input_ids=torch.cat([answers[1][:, :-3], prompts[0]], dim=1), **GREEDY)
    # The prompts begin with BOS and the marker, as what stands at this place in the second does not.
    assert lengths[0] == prompts[0].shape[1]


def test_what_is_alike_again_after_a_difference_is_read_anew(model, prompts):
    cache, other = PromptCache(1000), prompts[0].clone()
    other[0, 5] = other[0, 5] + (1 if other[0, 5] < 600 else -1)
    cache.generate(model, input_ids=prompts[0], **GREEDY)
    expected = model.generate(input_ids=other, **GREEDY)
    with reading(model) as lengths:
        assert torch.equal(cache.generate(model, input_ids=other, **GREEDY), expected)
    assert lengths[0] == other.shape[1] - 5


def test_what_was_used_longest_ago_is_forgotten(model, prompts):
    sizes = [prompt.shape[1] + 12 - 1 for prompt in prompts]
    cache = PromptCache(max_tokens=sizes[0] + sizes[1] + sizes[2] - 1)

    def is_kept(prompt) -> bool:
        with reading(model) as lengths:
            cache.generate(model, input_ids=prompt, **GREEDY)
        return lengths[0] == 1

    assert [is_kept(prompt) for prompt in prompts[:2]] == [False, False]
    assert is_kept(prompts[0])
    assert not is_kept(prompts[2]), "which makes it forget the second, used before the first"
    assert len(cache) == sizes[0] + sizes[2]
    assert is_kept(prompts[0]) and is_kept(prompts[2]) and not is_kept(prompts[1])
    small = PromptCache(max_tokens=10)
    small.generate(model, input_ids=prompts[0], **GREEDY)
    with reading(model) as lengths:
        small.generate(model, input_ids=prompts[0], **GREEDY)
    assert len(small) == 10 and lengths[0] == prompts[0].shape[1] - 10, "of a longer prompt the beginning is kept"
    cache.clear()
    assert len(cache) == 0 and not is_kept(prompts[0])


def test_threads_share_what_was_read_but_no_cache(model, prompts):
    """All at once begin with the same conversation and go on differently."""
    cache, options = PromptCache(2000), {**GREEDY, "max_new_tokens": 20}
    cache.generate(model, input_ids=prompts[0], **options)
    turns = [torch.cat([prompts[0], 512 + torch.arange(place, place + 9)[None]], dim=1) for place in range(0, 400, 50)]
    expected = [model.generate(input_ids=turn, **options) for turn in turns]
    meeting = threading.Barrier(len(turns))

    def ask(turn, streamed: bool):
        meeting.wait(timeout=60)
        if streamed:
            new = list(cache.stream_ids(model, input_ids=turn, **options))
            return torch.cat([turn, torch.tensor([new])], dim=1)
        return cache.generate(model, input_ids=turn, **options)

    with reading(model) as lengths, ThreadPoolExecutor(len(turns)) as threads:
        answers = list(threads.map(ask, turns, [place % 2 == 0 for place in range(len(turns))]))
    assert all(torch.equal(*pair) for pair in zip(answers, expected, strict=True))
    assert max(lengths) <= 1 + 9


@pytest.mark.parametrize("options", [{}, {"parallel_heads": True}])
def test_a_stream_that_is_closed_leaves_the_prompt_behind(model, prompts, options):
    cache, options = PromptCache(1000), {**GREEDY, "max_new_tokens": 200, "min_new_tokens": 200, **options}
    ids = cache.stream_ids(model, input_ids=prompts[0], **options)
    begun = [next(ids) for _ in range(5)]
    ids.close()
    assert len(cache) == prompts[0].shape[1]
    short = {**options, "max_new_tokens": 12, "min_new_tokens": 12}
    expected = model.generate(input_ids=prompts[0], **short)
    with reading(model) as lengths:
        assert torch.equal(cache.generate(model, input_ids=prompts[0], **short), expected)
    assert lengths[0] == 1 and expected[0, prompts[0].shape[1] :][:5].tolist() == begun
    unread = cache.stream_ids(model, input_ids=prompts[1], **options)
    unread.close()
    assert len(cache) == prompts[0].shape[1] + 12 - 1


def test_a_generation_that_fails_keeps_nothing(model, prompts):
    cache = PromptCache(1000)

    def fail(input_ids, scores):
        if input_ids.shape[1] > prompts[0].shape[1] + 4:
            raise RuntimeError("the model broke")
        return scores

    for ask in (cache.generate, lambda *inputs, **options: list(cache.stream_ids(*inputs, **options))):
        with pytest.raises(RuntimeError, match="the model broke"):
            ask(model, input_ids=prompts[0], logits_processor=[fail], **GREEDY)
        assert len(cache) == 0


def test_a_stream_that_is_closed_in_the_middle_of_a_step_leaves_whole_layers(model, prompts):
    """An answer is closed where the second layer has failed: the first holds more tokens than the others."""
    cache = PromptCache(1000)
    handle = model.model.layers[1].register_forward_pre_hook(
        lambda module, args, inputs: (
            (_ for _ in ()).throw(RuntimeError("the model broke"))
            if inputs["past_key_values"].get_seq_length(0) > prompts[0].shape[1] + 2
            else None
        ),
        with_kwargs=True,
    )
    try:
        ids = cache.stream_ids(model, input_ids=prompts[0], **GREEDY)
        next(ids)
        ids.close()
    finally:
        handle.remove()
    assert len(cache) == prompts[0].shape[1]
    expected = model.generate(input_ids=prompts[0], **GREEDY)
    assert torch.equal(cache.generate(model, input_ids=prompts[0], **GREEDY), expected)


def test_batches_beams_and_caches_of_ones_own_go_past_it(model, prompts):
    cache, prompt = PromptCache(1000), prompts[0]
    padded = torch.nn.functional.pad(prompt, (3, 0))
    mask = (padded != 0).long()
    for options in (
        {"input_ids": prompt.repeat(2, 1)},
        {"input_ids": prompt, "num_beams": 2},
        {"input_ids": padded, "attention_mask": mask},
        {"input_ids": prompt, "past_key_values": DynamicCache(config=model.config)},
        {"input_ids": prompt, "use_cache": False},
    ):
        expected = model.generate(**{**GREEDY, **options, **fresh(options, model)})
        assert torch.equal(cache.generate(model, **{**GREEDY, **options, **fresh(options, model)}), expected)
    assert list(cache.stream_ids(model, input_ids=padded, attention_mask=mask, **GREEDY)) == list(
        stream_ids(model, input_ids=padded, attention_mask=mask, **GREEDY)
    )
    assert len(cache) == 0


def fresh(options, model) -> dict:
    """A new cache in the place of one that was used."""
    return {"past_key_values": DynamicCache(config=model.config)} if "past_key_values" in options else {}


def test_a_cache_belongs_to_one_model(model, prompts):
    with pytest.raises(ValueError, match="max_tokens=0; expected at least 1"):
        PromptCache(0)
    cache = PromptCache(1000)
    cache.generate(model, input_ids=prompts[0], **GREEDY)
    other = TinyWaveForCausalLM.from_pretrained(TEACHER, dtype="float32", num_hidden_layers=1).eval()
    with pytest.raises(ValueError, match="another model uses"):
        cache.generate(other, input_ids=prompts[0], **GREEDY)
    cache.clear()
    assert torch.equal(
        cache.generate(other, input_ids=prompts[0], **GREEDY), other.generate(input_ids=prompts[0], **GREEDY)
    )


def test_the_benchmark_holds_a_conversation(pipeline, prompts):
    turns = [("speech", [3, 5, 3]), ("speech", [7, 1]), ("speech", [2, 9, 4])]
    torch.manual_seed(0)
    first, *later = hold_conversation(pipeline, turns)
    assert first["tokens_read"] == first["prompt_tokens"] == 2 + 3
    for before, row, (_, said) in zip([first, *later], later, turns[1:], strict=False):
        assert before["prompt_tokens"] < row["prompt_tokens"] <= before["prompt_tokens"] + NUM_NEW_TOKENS + len(said)
        assert row["tokens_read"] < row["prompt_tokens"]
    assert all(min(*row["with_cache"], *row["without_cache"]) > 0 for row in (first, *later))


def test_the_space_reads_only_what_is_new_of_a_conversation():
    """Its turns come back as the ids that were read and said."""
    studio, sampling = Studio(), Sampling(seconds=1, temperature=0)
    segments = [("speech", load_audio(CLIPS[0])[:32_000])]
    *_, answer = studio.interleaved(segments, "speech", PLAIN, sampling)
    said = [("speech", segment.streams) for segment in answer.segments]
    pipeline = studio.pipeline(PLAIN)
    with reading(pipeline.model) as lengths:
        *_, again = studio.interleaved([*answer.prompt, *said, ("text", "And then?")], "speech", PLAIN, sampling)
    new = pipeline.processor.tokenizer.encode("And then?", add_special_tokens=False)
    ids = answer.segments[0].streams.ids
    assert len(set(ids)) > 1 and (ids[1:] != ids[:-1]).all(), "repeats would be dropped from the prompt"
    # The id said last, the markers of text and speech, and the text.
    assert lengths[0] == 1 + 2 + len(new)
    pipeline.prompt_cache = None
    *_, without = studio.interleaved([*answer.prompt, *said, ("text", "And then?")], "speech", PLAIN, sampling)
    assert without.tokens == again.tokens
