"""Drafts and their verification: the ids of ordinary decoding, the distribution of ordinary sampling, fewer steps."""

import itertools
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare
from transformers import DynamicCache, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList, StaticCache

from tinywave.cli.shipped import AUDIO, CODEC, TEACHER
from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.data.audio_io import load_audio
from tinywave.generation_tinywave import stream_ids
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.parallel_heads_tinywave import Draft, verify_draft
from tinywave.pipeline_tinywave import TinyWavePipeline
from tinywave.processing_tinywave import TinyWaveProcessor
from tinywave.speech_encoder_tinywave import SpeechEncoder

NUM_HEADS, NUM_NEW = 3, 24
# Below this probability of a difference at least as large by chance, two distributions count as different.
ALPHA = 1e-3


@pytest.fixture(scope="module")
def prompts() -> list[torch.Tensor]:
    """Real speech in the units of the shipped encoder, as prompts of the shipped teacher."""
    encoder = SpeechEncoder.from_pretrained(CODEC / "speech_encoder").eval()
    recordings = [load_audio(path)[:32_000] for path in sorted((AUDIO / "librivox").glob("*.flac"))[:2]]
    tokenizer = TinyWaveProcessor.from_pretrained(TEACHER).tokenizer
    config = TinyWaveConfig.from_pretrained(TEACHER).with_streams(["unit"])
    processor = TinyWaveProcessor.from_config(config, tokenizer)
    return [
        processor([[("speech", units)]], output_modality="speech")["input_ids"] for units in encoder.encode(recordings)
    ]


@pytest.fixture(scope="module")
def untaught() -> TinyWaveForCausalLM:
    torch.manual_seed(0)
    return TinyWaveForCausalLM.from_pretrained(TEACHER, dtype="float32", num_parallel_heads=NUM_HEADS).eval()


@pytest.fixture(scope="module")
def taught(prompts) -> TinyWaveForCausalLM:
    """The teacher with heads that have learnt what it says after the prompts, and so foretell much of it."""
    torch.manual_seed(0)
    model = TinyWaveForCausalLM.from_pretrained(TEACHER, dtype="float32", num_parallel_heads=NUM_HEADS).eval()
    spoken = [plain(model, prompt, do_sample=False, max_new_tokens=2 * NUM_NEW) for prompt in prompts]
    teach_heads(model, spoken, num_steps=25)
    return model


def teach_heads(model, sequences, num_steps: int) -> None:
    optimizer = torch.optim.Adam(model.parallel_heads.parameters(), lr=1e-2)
    with torch.no_grad():
        hidden = [model.model(ids).last_hidden_state for ids in sequences]
        embeddings = [model.get_input_embeddings()(ids) for ids in sequences]
    for _, (ids, states, embedded) in itertools.product(
        range(num_steps), zip(sequences, hidden, embeddings, strict=True)
    ):
        losses = []
        for distance, foretold in enumerate(model.parallel_heads(states, embedded), start=1):
            logits = model.lm_head(foretold[0, : ids.shape[1] - distance - 1])
            losses.append(torch.nn.functional.cross_entropy(logits, ids[0, distance + 1 :]))
        sum(losses).backward()
        optimizer.step()
        model.zero_grad()


def plain(model, prompt, output_modality="speech", **options) -> torch.Tensor:
    return model.generate(prompt, output_modality=output_modality, **{"max_new_tokens": NUM_NEW, **options})


def parallel(model, prompt, **options) -> tuple[torch.Tensor, int]:
    """The ids with parallel heads, and the number of forward passes of the decoder."""
    calls = []
    hook = model.model.register_forward_hook(lambda *_: calls.append(None))
    try:
        return plain(model, prompt, parallel_heads=True, **options), len(calls)
    finally:
        hook.remove()


class Insist(LogitsProcessor):
    """Makes one id the only one as soon as there are so many before it."""

    def __init__(self, token_id: int, length: int):
        self.token_id, self.length = token_id, length

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] >= self.length:
            scores = torch.full_like(scores, -1e4)
            scores[:, self.token_id] = 0.0
        return scores


# ---- the likeliest token ----


@pytest.mark.parametrize("output_modality", ["speech", "free", "text"])
def test_greedy_ids_are_those_of_ordinary_decoding(taught, untaught, prompts, output_modality):
    for model, prompt in itertools.product((taught, untaught), prompts):
        options = {"do_sample": False, "output_modality": output_modality}
        ids, _ = parallel(model, prompt, **options)
        assert ids.tolist() == plain(model, prompt, **options).tolist()


def test_taught_heads_save_forward_passes_and_untaught_ones_cost_none(taught, untaught, prompts):
    for prompt in prompts:
        options = {"do_sample": False, "min_new_tokens": NUM_NEW}
        assert parallel(taught, prompt, **options)[1] <= NUM_NEW / 2
        assert parallel(untaught, prompt, **options)[1] <= NUM_NEW


@pytest.mark.parametrize("num_new", [1, 2, 3, 4, 5, 6, 7])
def test_the_limit_may_fall_inside_a_draft(taught, prompts, num_new):
    options = {"do_sample": False, "min_new_tokens": num_new, "max_new_tokens": num_new}
    ids, _ = parallel(taught, prompts[0], **options)
    assert ids.shape[1] == prompts[0].shape[1] + num_new
    assert ids.tolist() == plain(taught, prompts[0], **options).tolist()


def test_the_last_place_of_the_context_is_used_and_no_more(taught, prompts):
    room = taught.config.max_position_embeddings - 5
    prompt = prompts[0].repeat(1, -(-room // prompts[0].shape[1]))[:, :room]
    reached = []
    hook = taught.model.register_forward_pre_hook(
        lambda _, __, inputs: reached.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    with hook:
        ids = plain(taught, prompt, parallel_heads=True, do_sample=False, min_new_tokens=5, max_new_tokens=5)
    assert ids.shape[1] == taught.config.max_position_embeddings
    assert max(reached[1:]) <= 4 and reached[0] == room


@pytest.mark.parametrize("offset", [1, 2, 3, 4, 5])
def test_the_end_may_fall_inside_a_draft(taught, prompts, offset):
    """The model ends wherever the drafts stand, nothing follows, and a stream hears the same."""
    prompt = prompts[0]
    insist = LogitsProcessorList([Insist(taught.config.eos_token_id, prompt.shape[1] + offset)])
    options = {"do_sample": False, "logits_processor": insist}
    ids, _ = parallel(taught, prompt, **options)
    assert ids.shape[1] == prompt.shape[1] + offset + 1 and ids[0, -1] == taught.config.eos_token_id
    assert ids.tolist() == plain(taught, prompt, **options).tolist()
    streamed = stream_ids(taught, input_ids=prompt, output_modality="speech", parallel_heads=True, **options)
    assert list(streamed) == ids[0, prompt.shape[1] :].tolist()


def test_padding_on_the_left_changes_nothing(taught, prompts):
    padded = torch.cat([torch.full((1, 4), taught.config.pad_token_id), prompts[0]], dim=1)
    mask = (padded != taught.config.pad_token_id).long()
    ids, _ = parallel(taught, padded, attention_mask=mask, do_sample=False)
    assert ids[:, 4:].tolist() == plain(taught, prompts[0], do_sample=False).tolist()


@pytest.mark.parametrize("name", ["taught", "untaught"])
def test_the_cache_holds_what_was_said_and_goes_on(name, prompts, request):
    """Whether drafts are kept or thrown away, the cache is that of the ids alone, and the next turn starts from it."""
    model, cache = request.getfixturevalue(name), DynamicCache()
    ids, _ = parallel(model, prompts[0], do_sample=False, past_key_values=cache)
    with torch.no_grad():
        expected = model.model(ids[:, :-1], use_cache=True).past_key_values
    for (keys, values, _), (expected_keys, expected_values, _) in zip(cache, expected, strict=True):
        assert keys.shape[2] == ids.shape[1] - 1
        torch.testing.assert_close(keys, expected_keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(values, expected_values, rtol=1e-4, atol=1e-4)
    longer, _ = parallel(model, ids, do_sample=False, past_key_values=cache)
    assert longer.tolist() == plain(model, ids, do_sample=False).tolist()


def test_without_verification_every_draft_is_kept(taught, untaught, prompts):
    options = {"do_sample": False, "verify_drafts": False, "min_new_tokens": NUM_NEW}
    for model in (taught, untaught):
        _, num_passes = parallel(model, prompts[0], **options)
        assert num_passes == 1 + -(-(NUM_NEW - 1) // (NUM_HEADS + 1))
    ids, _ = parallel(untaught, prompts[0], **options)
    assert ids.tolist() != plain(untaught, prompts[0], do_sample=False, min_new_tokens=NUM_NEW).tolist()


# ---- sampling ----


def chance_of_at_least(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """p-value of Pearson's test; outcomes of fewer than five expected draws are taken together."""
    expected = probabilities.double() * counts.sum()
    rare = expected < 5
    pairs = [(counts[~rare], expected[~rare])]
    if rare.any():
        pairs.append((counts[rare].sum()[None], expected[rare].sum()[None]))
    observed, expected = (torch.cat(column).double() for column in zip(*pairs, strict=True))
    return chisquare(observed.numpy(), (expected * observed.sum() / expected.sum()).numpy()).pvalue


@pytest.mark.parametrize(
    ("proposed", "wanted"),
    [
        ([0.7, 0.1, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]),
        ([0.5, 0.5, 0.0, 0.0], [0.0, 0.25, 0.25, 0.5]),
        ([0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]),
        ([1.0, 0.0, 0.0, 0.0], [0.3, 0.3, 0.4, 0.0]),
    ],
)
def test_a_verified_draft_is_distributed_as_the_decoder_says(proposed, wanted):
    torch.manual_seed(0)
    proposed, wanted = torch.tensor(proposed), torch.tensor(wanted)
    drafts = torch.multinomial(proposed, 4000, replacement=True).tolist()
    said = torch.tensor([verify_draft(Draft(index, proposed), wanted) for index in drafts])
    counts = said.bincount(minlength=4)
    assert counts[wanted == 0].sum() == 0
    assert chance_of_at_least(counts[wanted > 0], wanted[wanted > 0]) > ALPHA
    kept = (said == torch.tensor(drafts)).double().mean()
    assert kept == pytest.approx(torch.minimum(proposed, wanted).sum().item(), abs=0.03)


def test_rounding_alone_rejects_into_the_decoders_own_distribution():
    """p below q at the draft and nowhere above it: there is no residual, and the draft itself may be said again."""
    torch.manual_seed(0)
    said = {verify_draft(Draft(0, torch.tensor([0.5, 0.5])), torch.tensor([0.4, 0.5])) for _ in range(100)}
    assert said == {0, 1}


TINY = {
    "vocab_size": 24, "text_vocab_size": 8, "text_offset": 4, "text_marker_id": 8, "speech_marker_id": 9,
    "unit_offset": 10, "num_units": 6, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "num_parallel_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
TINY_PROMPT, TINY_EOS = (1, 9, 11, 14), 2
# The modality mask leaves six units and EOS, top-k five of these seven.
SAMPLING = {"do_sample": True, "temperature": 1.3, "top_k": 5, "top_p": 0.93}
NUM_TOKENS = 3


@pytest.fixture(scope="module")
def tiny() -> TinyWaveForCausalLM:
    """A model whose distributions and drafts differ from each other, and from token to token."""
    torch.manual_seed(1)
    model = TinyWaveForCausalLM(TinyWaveConfig(**TINY)).eval()
    with torch.no_grad():
        for parameter in (*model.model.layers.parameters(), *model.parallel_heads.parameters()):
            if parameter.ndim > 1:
                parameter.normal_(0, 0.4)
        model.get_input_embeddings().weight.normal_()
        model.lm_head.weight.normal_(0, 0.3)
    return model


def ordinary_probabilities(model, ids: tuple[int, ...]) -> torch.Tensor:
    """What ordinary sampling says after ids: `(V,)` in float64, by masking and truncating the logits by hand."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1].double()
    allowed = torch.zeros(len(logits), dtype=torch.bool)
    allowed[[TINY_EOS, *range(10, 16)]] = True
    logits = logits.masked_fill(~allowed, -torch.inf) / SAMPLING["temperature"]
    logits[logits.argsort(descending=True)[SAMPLING["top_k"] :]] = -torch.inf
    probabilities, order = logits.softmax(-1).sort(descending=True)
    # The likeliest tokens that together reach top-p.
    probabilities[1:][probabilities.cumsum(0)[:-1] >= SAMPLING["top_p"]] = 0
    return torch.zeros_like(probabilities).scatter(0, order, probabilities / probabilities.sum())


def ordinary_outcomes(model) -> dict[tuple[int, ...], float]:
    """Every beginning of `NUM_TOKENS` tokens, or fewer and EOS, that ordinary sampling can say: its probability."""
    known = {(): 1.0}
    for _ in range(NUM_TOKENS):
        longer = {said: share for said, share in known.items() if said[-1:] == (TINY_EOS,)}
        for said in known.keys() - longer.keys():
            shares = ordinary_probabilities(model, TINY_PROMPT + said).tolist()
            longer |= {(*said, index): known[said] * share for index, share in enumerate(shares) if share}
        known = longer
    return known


def draw(model, num_draws: int, **options) -> Counter:
    """The beginnings that are sampled with parallel heads; one token more is asked for, so that two are drafted."""
    torch.manual_seed(0)
    prompt, said = torch.tensor([TINY_PROMPT]), Counter()
    for _ in range(num_draws):
        ids = plain(model, prompt, max_new_tokens=NUM_TOKENS + 1, parallel_heads=True, **SAMPLING, **options)
        said[tuple(ids[0, len(TINY_PROMPT) :].tolist()[:NUM_TOKENS])] += 1
    return said


def test_sampled_ids_have_the_distribution_of_ordinary_sampling(tiny):
    expected = ordinary_outcomes(tiny)
    assert sum(expected.values()) == pytest.approx(1)
    verified, unverified = draw(tiny, 1500), draw(tiny, 400, verify_drafts=False)
    assert verified.keys() <= expected.keys(), "nothing is said that ordinary sampling never says"
    probabilities = torch.tensor(list(expected.values()))
    counts, others = (torch.tensor([said[outcome] for outcome in expected]) for said in (verified, unverified))
    assert chance_of_at_least(counts, probabilities) > ALPHA
    assert chance_of_at_least(others, probabilities) < ALPHA**2, "the test tells drafts from what the model says"


def test_sampling_is_repeatable_and_saves_forward_passes(taught, prompts):
    options = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "min_new_tokens": NUM_NEW}
    torch.manual_seed(0)
    first, num_passes = parallel(taught, prompts[0], **options)
    torch.manual_seed(0)
    assert parallel(taught, prompts[0], **options)[0].tolist() == first.tolist()
    assert num_passes < NUM_NEW


# ---- weights ----


def test_a_model_with_heads_is_saved_whole_and_still_a_llama(untaught, prompts, tmp_path):
    untaught.save_pretrained(tmp_path)
    loaded = TinyWaveForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.config.num_parallel_heads == NUM_HEADS
    for name, tensor in untaught.parallel_heads.state_dict().items():
        assert torch.equal(loaded.parallel_heads.state_dict()[name], tensor)
    llama = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(llama(prompts[0]).logits, untaught(prompts[0]).logits)


def test_without_heads_a_model_is_llama_to_the_name(untaught):
    config = TinyWaveConfig.from_preset("nano-student", num_hidden_layers=1)
    assert list(TinyWaveForCausalLM(config).state_dict()) == list(LlamaForCausalLM(config).state_dict())
    own = [name for name in untaught.state_dict() if not name.startswith("parallel_heads.")]
    assert own == list(LlamaForCausalLM(untaught.config).state_dict())


def test_a_saved_model_drafts_where_the_package_is_missing(taught, prompts, tmp_path):
    taught.save_pretrained(tmp_path / "heads")
    ids, num_passes = parallel(taught, prompts[0], do_sample=False)
    torch.save({"prompt": prompts[0], "ids": ids}, tmp_path / "ids.pt")
    code = (
        "import sys, torch\n"
        "sys.modules['tinywave'] = None\n"
        "from transformers import AutoModelForCausalLM\n"
        "saved = torch.load('ids.pt', weights_only=True)\n"
        "model = AutoModelForCausalLM.from_pretrained('heads', trust_remote_code=True).eval()\n"
        "llama = AutoModelForCausalLM.from_pretrained('heads').eval()\n"
        "passes = []\n"
        "model.model.register_forward_hook(lambda *_: passes.append(None))\n"
        f"options = {{'parallel_heads': True, 'max_new_tokens': {NUM_NEW}, 'do_sample': False}}\n"
        "ids = model.generate(saved['prompt'], output_modality='speech', **options)\n"
        "assert torch.equal(ids, saved['ids'])\n"
        "print(type(llama).__name__, len(passes))\n"
    )
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert result.stdout.split() == ["LlamaForCausalLM", str(num_passes)], result.stderr


def test_eight_bits_draft_and_verify(taught, prompts, tmp_path):
    """Activations are rounded together, so the ids are those of the passes that verified them, and repeatable."""
    taught.save_pretrained(tmp_path)
    quantized = TinyWaveForCausalLM.from_pretrained(tmp_path).eval().quantize()
    options = {"do_sample": False, "min_new_tokens": NUM_NEW}
    ids, num_passes = parallel(quantized, prompts[0], **options)
    assert ids.shape == (1, prompts[0].shape[1] + NUM_NEW) and num_passes <= NUM_NEW / 1.5
    with torch.no_grad():
        likeliest = taught(ids[:, :-1]).logits[0, prompts[0].shape[1] - 1 :, 512:1012].argmax(-1) + 512
    assert (likeliest == ids[0, prompts[0].shape[1] :]).double().mean() >= 0.75, "nearly what it says unrounded"
    quantized.save_pretrained(tmp_path / "int8")
    loaded = TinyWaveForCausalLM.from_pretrained(tmp_path / "int8").eval()
    assert parallel(loaded, prompts[0], **options)[0].tolist() == ids.tolist()


def test_the_pipeline_and_its_stream_take_the_option(expressive_codec):
    torch.manual_seed(0)
    config = TinyWaveConfig.from_preset("nano-expressive-student", num_hidden_layers=1, num_parallel_heads=2)
    model = TinyWaveForCausalLM(config).eval()
    processor = TinyWaveProcessor.from_config(config, TinyWaveProcessor.from_pretrained(TEACHER).tokenizer)
    pipeline = TinyWavePipeline(model, processor, expressive_codec)
    prompt = [("speech", load_audio(sorted((AUDIO / "librivox").glob("*.flac"))[0])[:32_000])]
    options = {"do_sample": False, "min_new_tokens": 20, "max_new_tokens": 20}
    (expected,), (found,) = pipeline(prompt, **options), pipeline(prompt, parallel_heads=True, **options)
    assert list(found.streams.ids) == list(expected.streams.ids) and len(found.streams.ids) == 20
    streamed = list(pipeline.stream(prompt, parallel_heads=True, **options))
    assert sum(len(piece.waveform) for piece in streamed) == len(expected.waveform)


def test_what_parallel_heads_cannot_do_is_refused(taught, prompts):
    without = TinyWaveForCausalLM(TinyWaveConfig.from_preset("nano-student", num_hidden_layers=1)).eval()
    with pytest.raises(ValueError, match="without parallel heads; train some with `tinywave train-heads`"):
        plain(without, torch.tensor([[1, 511, 600]]), parallel_heads=True)
    refused = {
        "found num_beams=2": {"num_beams": 2},
        "found return_dict_in_generate=True": {"return_dict_in_generate": True},
        "found a StaticCache": {"past_key_values": StaticCache(taught.config, max_cache_len=200)},
        "found 2 rows; parallel heads continue one prompt at a time": {"num_return_sequences": 2, "do_sample": True},
    }
    for message, options in refused.items():
        with pytest.raises(ValueError, match=message):
            plain(taught, prompts[0], parallel_heads=True, **options)
    with pytest.raises(Exception, match="num_parallel_heads is -1"):
        TinyWaveConfig(num_parallel_heads=-1)
