"""Generation: which ids may follow which, batches, endings, and prompts that are refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinywave.configuration_tinywave import PRESETS, TinyWaveConfig
from tinywave.generation_tinywave import ModalityLogitsProcessor
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.tokenization_tinywave import ids_to_streams

BOS, EOS, PAD, TEXT, SPEECH = 1, 2, 0, 510, 511
TEXT_IDS, UNIT_IDS = set(range(4, 510)), set(range(512, 1012))
CONFIG = TinyWaveConfig.from_preset(
    "nano-student", num_hidden_layers=2, hidden_size=48, intermediate_size=64, max_position_embeddings=64
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    # A wider initialisation makes the continuations of a random model differ from each other.
    return TinyWaveForCausalLM(TinyWaveConfig(**{**CONFIG.to_dict(), "initializer_range": 0.3})).eval()


# (first text id, [Text], [Speech], first and last id of speech) of each preset.
LAYOUTS = {
    "speech-base-2b": (3, 32000, 32001, 32002, 32502),
    "speech-expressive-2b": (3, 32000, 32001, 32002, 32666),
    "interleaved-expressive-2b": (3, 32000, 32001, 32002, 32666),
    "spirit-lm-7b": (3, 32000, 32001, 32002, 32502),
    "nano-teacher": (4, 510, 511, 512, 1011),
    "nano-student": (4, 510, 511, 512, 1011),
    "nano-expressive-teacher": (4, 510, 511, 512, 1080),
    "nano-expressive-student": (4, 510, 511, 512, 1080),
}


def left_padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    length = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[PAD] * (length - len(prompt)) + prompt for prompt in prompts]),
        "attention_mask": torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
    }


def allowed_after(row: list[int], output_modality: str) -> set[int]:
    """The rule, read off token by token."""
    if output_modality != "free":
        return {EOS} | (TEXT_IDS if output_modality == "text" else UNIT_IDS)
    markers = [index for index in row if index in (TEXT, SPEECH)]
    if not markers:
        return {EOS, TEXT, SPEECH} | TEXT_IDS | UNIT_IDS
    return {EOS} | (TEXT_IDS | {SPEECH} if markers[-1] == TEXT else UNIT_IDS | {TEXT})


@given(
    rows=st.integers(1, 12).flatmap(
        lambda length: st.lists(
            st.lists(st.sampled_from([0, 1, 5, 509, TEXT, SPEECH, 512, 1011]), min_size=length, max_size=length),
            min_size=1,
            max_size=4,
        )
    ),
    output_modality=st.sampled_from(["free", "text", "speech"]),
)
def test_mask_follows_the_rule_in_every_row(rows, output_modality):
    processor = ModalityLogitsProcessor(CONFIG, output_modality)
    scores = torch.randn(len(rows), 1024, generator=torch.Generator().manual_seed(0))
    masked = processor(torch.tensor(rows), scores)
    for row, before, after in zip(rows, scores, masked, strict=True):
        allowed = torch.isfinite(after)
        assert set(allowed.nonzero().flatten().tolist()) == allowed_after(row, output_modality)
        assert torch.equal(after[allowed], before[allowed])


def test_every_preset_has_its_layout_here():
    assert LAYOUTS.keys() == PRESETS.keys()


@pytest.mark.parametrize("name", LAYOUTS)
def test_mask_of_every_preset(name):
    """Pitch and style are speech: allowed with units, never in text; EOS always, filler never."""
    text_start, text_marker, speech_marker, speech_start, speech_last = LAYOUTS[name]
    text, speech = range(text_start, text_marker), range(speech_start, speech_last + 1)
    config = TinyWaveConfig.from_preset(name)

    def allowed(output_modality: str, last: int) -> list[int]:
        processor = ModalityLogitsProcessor(config, output_modality)
        masked = processor(torch.tensor([[BOS, last]]), torch.zeros(1, config.vocab_size))
        return torch.isfinite(masked[0]).nonzero().flatten().tolist()

    assert allowed("speech", speech_marker) == [EOS, *speech]
    assert allowed("text", text_marker) == [EOS, *text]
    assert allowed("free", speech_marker) == [EOS, text_marker, *speech]
    assert allowed("free", text_marker) == [EOS, *text, speech_marker]
    assert allowed("free", BOS) == [EOS, *text, text_marker, speech_marker, *speech]


@pytest.mark.parametrize("output_modality", ["text", "speech"])
def test_expressive_model_writes_all_streams_in_speech_and_none_in_text(output_modality):
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "hidden_size": 48, "intermediate_size": 64, "max_position_embeddings": 512}
    config = TinyWaveConfig.from_preset("nano-expressive-student", **sizes)
    model = TinyWaveForCausalLM(config).eval()
    inputs = left_padded([[BOS, SPEECH, 1076, 1012, 600], [BOS, TEXT, 77, SPEECH, 1080, 1075, 512], [BOS]])
    # Of 569 ids of speech five are style: 3 x 150 tokens of a random model hold some of every stream.
    output = model.generate(
        **inputs, output_modality=output_modality, max_new_tokens=150, min_new_tokens=150, do_sample=True, top_k=0
    )
    new = output[:, inputs["input_ids"].shape[1] :]
    if output_modality == "text":
        assert new.min() >= 4 and new.max() <= 509
        return
    assert new.min() >= 512 and new.max() <= 1080
    assert ((new >= 1012) & (new < 1076)).any() and (new >= 1076).any()
    for row in new:
        streams = ids_to_streams(row, config)
        assert len(streams.units) == (row < 1012).sum()
        assert streams.pitch.max() <= 63 and (streams.style is None or streams.style.max() <= 4)


def test_mask_keeps_every_end_and_an_end_that_is_also_padding():
    several = TinyWaveConfig(**{**CONFIG.to_dict(), "eos_token_id": [2, 3]})
    masked = ModalityLogitsProcessor(several, "speech")(torch.tensor([[1]]), torch.zeros(1, 1024))
    assert torch.isfinite(masked[0, [2, 3]]).all()
    shared = TinyWaveConfig(**{**CONFIG.to_dict(), "pad_token_id": 2})
    masked = ModalityLogitsProcessor(shared, "text")(torch.tensor([[1]]), torch.zeros(1, 1024))
    assert torch.isfinite(masked[0, 2])


@pytest.mark.parametrize("output_modality", ["free", "text", "speech"])
def test_sampled_ids_follow_the_rule(model, output_modality):
    torch.manual_seed(0)
    inputs = left_padded([[BOS, TEXT, 40, 41, SPEECH, 600], [BOS, TEXT, 77], [BOS]])
    output = model.generate(
        **inputs, output_modality=output_modality, max_new_tokens=40, do_sample=True, temperature=1.5, top_k=0
    )
    start = inputs["input_ids"].shape[1]
    for row in output.tolist():
        for position in range(start, len(row)):
            assert row[position] in allowed_after(row[:position], output_modality)
            if row[position] == EOS:
                assert set(row[position + 1 :]) <= {PAD}
                break


@pytest.mark.parametrize("output_modality", ["free", "text", "speech"])
def test_left_padded_batch_equals_single_prompts(model, output_modality):
    prompts = [
        [BOS, SPEECH, 600, 601, 700, 512, 513, 999],
        [BOS, TEXT, 77],
        [BOS, TEXT, 8, 9, SPEECH, 600, TEXT, 10, 11, SPEECH, 601],
        [BOS],
    ]
    batch = left_padded(prompts)
    output = model.generate(**batch, output_modality=output_modality, max_new_tokens=16, do_sample=False)
    for prompt, row in zip(prompts, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
        single = model.generate(
            torch.tensor([prompt]), output_modality=output_modality, max_new_tokens=16, do_sample=False
        )[0, len(prompt) :].tolist()
        assert row == single + [PAD] * (len(row) - len(single))
    assert len({tuple(row) for row in output[:, -16:].tolist()}) == len(prompts), "the prompts matter"


def test_beams_follow_the_rule(model):
    prompt = torch.tensor([[BOS, TEXT, 40, SPEECH, 600]])
    row = model.generate(prompt, output_modality="speech", max_new_tokens=8, num_beams=3, do_sample=False)[0].tolist()
    assert set(row[5:]) <= UNIT_IDS | {EOS, PAD}


def test_a_model_that_learned_to_end_ends():
    torch.manual_seed(0)
    model = TinyWaveForCausalLM(CONFIG)
    sequences = [[BOS, SPEECH, 600, 601, 602, EOS], [BOS, SPEECH, 700, 701, 702, 703, 704, EOS]]
    examples = [torch.tensor([sequence]) for sequence in sequences]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(25):
        sum(model(input_ids=example, labels=example).loss for example in examples).backward()
        optimizer.step()
        optimizer.zero_grad()
    inputs = left_padded([sequence[:3] for sequence in sequences])
    output = model.eval().generate(**inputs, max_new_tokens=30, do_sample=False)
    assert output.tolist() == [sequences[0] + [PAD, PAD], sequences[1]]
    longer = model.generate(**inputs, max_new_tokens=10, min_new_tokens=10, do_sample=False)
    assert longer.shape == (2, 13) and EOS not in longer, "a requested minimum length is kept"


def test_max_new_tokens_is_kept(model):
    output = model.generate(
        torch.tensor([[BOS, SPEECH, 600]]), output_modality="speech", max_new_tokens=7, min_new_tokens=7
    )
    assert output.shape == (1, 10)


def test_further_logits_processors_are_applied(model):
    class Only777:
        def __call__(self, input_ids, scores):
            return torch.full_like(scores, -1e4).index_fill(1, torch.tensor([777, 40]), 0.0)

    output = model.generate(
        torch.tensor([[BOS, SPEECH, 600]]), logits_processor=[Only777()], max_new_tokens=3, do_sample=False
    )
    assert output[0, 3:].tolist() == [777] * 3


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.long), "a prompt is empty"),
        (torch.tensor([[BOS, SPEECH], [PAD, PAD]]), "a prompt is empty"),
        (torch.tensor([[BOS, SPEECH, PAD]]), "pad on the left"),
        (torch.tensor([[BOS, PAD, SPEECH]]), "pad on the left"),
        (torch.tensor([BOS, SPEECH]), r"has shape \(2,\)"),
        (torch.tensor([[1.0, 2.0]]), "dtype torch.float32"),
        (torch.tensor([[BOS, 1024]]), "holds id 1024"),
        (torch.tensor([[BOS, -7]]), "holds id -7"),
        (torch.tensor([[BOS, 1015]]), "holds id 1015, which has no meaning for this model: it is filler"),
        (torch.full((1, 64), 600), "64 tokens and 1 new ones exceed the context of 64"),
    ],
)
def test_wrong_prompts_are_refused(model, prompt, message):
    with pytest.raises(ValueError, match=message):
        model.generate(prompt, max_new_tokens=1)
    with pytest.raises(ValueError, match=message):
        model.generate(input_ids=prompt, max_new_tokens=1)


def test_more_wrong_requests(model):
    prompt = torch.tensor([[BOS, SPEECH, 600]])
    with pytest.raises(ValueError, match="unknown output_modality 'audio'; choose one of"):
        model.generate(prompt, output_modality="audio")
    with pytest.raises(ValueError, match="3 tokens and 62 new ones exceed the context of 64"):
        model.generate(prompt, max_new_tokens=62)
    with pytest.raises(ValueError, match=r"the attention mask has shape \(1, 2\)"):
        model.generate(prompt, attention_mask=torch.ones(1, 2), max_new_tokens=1)
    assert model.generate(prompt, max_new_tokens=61, output_modality="speech").shape[1] <= 64
