import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tinywave.training.attention_tap import TAPPED_ATTENTION, ActivationTap

VOCABULARY, LENGTH = 50, 12


def make_model(seed=0, **changes):
    torch.manual_seed(seed)
    settings = dict(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
                    num_attention_heads=4, num_key_value_heads=2, pad_token_id=0)  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**(settings | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # far from uniform attention
    return model


@pytest.fixture
def batch():
    ids = torch.randint(1, VOCABULARY, (2, LENGTH))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_block_outputs_are_hidden_states_shifted_by_one_and_before_the_final_norm(batch):
    model = make_model().eval()
    reference = model(**batch, output_hidden_states=True)
    with ActivationTap(model, hidden_blocks=range(4)).record() as record:
        model(**batch)
    for block in range(3):
        assert record.block_outputs[block].equal(reference.hidden_states[block + 1])
    last = record.block_outputs[3]
    assert not torch.allclose(last, reference.hidden_states[4], atol=1e-2)
    assert model.model.norm(last).equal(reference.hidden_states[4])


@pytest.mark.parametrize("padded", [True, False])
def test_recorded_queries_and_keys_give_the_eager_attention_maps(batch, padded):
    model = make_model().eval()
    if not padded:
        batch = {"input_ids": batch["input_ids"]}
    model.set_attn_implementation("eager")
    maps = model(**batch, output_attentions=True).attentions
    tap = ActivationTap(model, attention_blocks=(1, 3))
    with tap.record() as record:
        model(**batch)
    assert sorted(record.attention_inputs) == [1, 3]
    for block, inputs in record.attention_inputs.items():
        assert (inputs.mask is None) == (not padded)
        allowed = torch.ones(LENGTH, LENGTH).tril().bool()[None, None] if inputs.mask is None else inputs.mask
        scores = inputs.query @ inputs.key.repeat_interleave(2, 1).transpose(2, 3) * inputs.scaling
        rows = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1)
        tokens = batch["attention_mask"].bool() if padded else torch.ones(2, LENGTH).bool()
        keep = tokens[:, None, :, None].expand_as(rows)
        torch.testing.assert_close(rows[keep], maps[block][keep], rtol=1e-5, atol=1e-6)


def test_the_tapped_model_computes_what_sdpa_computes(batch):
    model = make_model().eval()
    expected = model(**batch).logits
    ActivationTap(model, hidden_blocks=(0,), attention_blocks=(0,))
    assert model.config._attn_implementation == TAPPED_ATTENTION
    assert model(**batch).logits.equal(expected)


def test_the_tapped_implementation_is_not_saved(batch, tmp_path):
    model = make_model()
    ActivationTap(model, attention_blocks=(0,))
    model.save_pretrained(tmp_path)
    assert TAPPED_ATTENTION not in (tmp_path / "config.json").read_text()
    assert LlamaForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_taps_of_two_models_do_not_mix(batch):
    first, second = make_model(0).eval(), make_model(1).eval()
    first_tap = ActivationTap(first, hidden_blocks=(2,), attention_blocks=(2,))
    second_tap = ActivationTap(second, hidden_blocks=(0,), attention_blocks=(0,))
    with first_tap.record() as first_record, second_tap.record() as second_record:
        second(**batch)
        first(**batch)
    assert list(first_record.attention_inputs) == list(first_record.block_outputs) == [2]
    assert list(second_record.attention_inputs) == list(second_record.block_outputs) == [0]


def test_nothing_is_recorded_outside_a_recording(batch):
    model = make_model()
    tap = ActivationTap(model, hidden_blocks=(1,), attention_blocks=(1,))
    with tap.record() as record:
        model(**batch)
    output = record.block_outputs[1]
    model(**batch)
    assert record.block_outputs[1] is output


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_flow_through_the_record(batch, checkpointing):
    model = make_model().train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    tap = ActivationTap(model, hidden_blocks=(3,), attention_blocks=(2,))
    with tap.record() as record:
        model(**batch)
    inputs = record.attention_inputs[2]
    (inputs.key.square().sum() + record.block_outputs[3].square().sum()).backward()
    gradient = model.model.layers[2].self_attn.k_proj.weight.grad.clone()
    untapped = make_model().train()
    keys_seen = []
    untapped.model.layers[2].self_attn.k_proj.register_forward_hook(lambda _, __, keys: keys_seen.append(keys))
    before_norm = untapped(**batch, output_hidden_states=True).hidden_states[3]
    layer = untapped.model.layers[3]
    rotary = untapped.model.rotary_emb(before_norm, torch.arange(LENGTH)[None])
    mask = batch["attention_mask"].bool()[:, None, None, :] & torch.ones(LENGTH, LENGTH).tril().bool()
    last = layer(before_norm, attention_mask=mask, position_embeddings=rotary)
    (keys_seen[0].square().sum() + last.square().sum()).backward()  # rotation keeps the length of keys
    torch.testing.assert_close(gradient, untapped.model.layers[2].self_attn.k_proj.weight.grad, rtol=1e-4, atol=1e-4)


def test_reentrant_checkpointing_is_noticed(batch):
    model = make_model().train()
    model.activation_checkpointing_enable({"use_reentrant": True})
    tap = ActivationTap(model, attention_blocks=(2,))
    with pytest.raises(RuntimeError, match="use_reentrant=False"), tap.record():
        model(**batch)


def test_a_record_with_gaps_is_an_error(batch):
    model = make_model()
    tap = ActivationTap(model, attention_blocks=(2,))
    model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match=r"no queries and keys of blocks \[2\]"), tap.record():
        model(**batch)


def test_blocks_out_of_range_and_models_of_another_layout_are_refused():
    with pytest.raises(ValueError, match=r"Cannot tap blocks \[4\] of LlamaForCausalLM, which has 4 blocks"):
        ActivationTap(make_model(), hidden_blocks=(4,))
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8))
    with pytest.raises(ValueError, match="Llama's layout"):
        ActivationTap(gpt2, hidden_blocks=(0,))
