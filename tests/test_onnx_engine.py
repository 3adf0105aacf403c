"""A model in ONNX says what the same rounded weights say in PyTorch: padded or not, cached or not, in a pipeline."""

import json
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from tinywave.batching_tinywave import Prompt, continue_many
from tinywave.cli.loading import load_for_scoring, load_language_model
from tinywave.cli.main import main
from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.data.audio_io import load_audio
from tinywave.data.codec_loading import load_codec
from tinywave.engines.in_place_cache import InPlaceLayer
from tinywave.engines.onnx_export import WeightFormat, export_onnx, pack_bits, quantize_blocks
from tinywave.engines.onnx_model import OnnxForCausalLM
from tinywave.eval.scoring import score_sequences
from tinywave.eval.suites import read_suite
from tinywave.generation_tinywave import stream_ids
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.pipeline_tinywave import TinyWavePipeline
from tinywave.prompt_cache_tinywave import PromptCache

ASSETS = Path(__file__).parents[1] / "assets"
TEACHER = ASSETS / "teacher"
RECORDING = ASSETS / "audio" / "librivox"
_LINEARS = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.o_proj": ("self_attn.o_proj",),
    "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}


def rounded_in_pytorch(model: TinyWaveForCausalLM, folder: Path) -> TinyWaveForCausalLM:
    """The model with the weights that the file holds, read as the operators' documentation says."""
    graph = onnx.load(folder / "model.onnx").graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {}
    for node in (node for node in graph.node if node.op_type == "MatMulNBits"):
        sizes = {attribute.name: attribute.i for attribute in node.attribute}
        values, scales, zeros = (unpacked(tensors[name], sizes["bits"]) for name in node.input[1:])
        zeros = zeros[:, : scales.shape[1], None].astype(np.float32)
        weight = (values.astype(np.float32) - zeros) * scales[..., None]
        weights[node.input[1].removesuffix(".weight")] = weight.reshape(sizes["N"], -1)[:, : sizes["K"]]
    state = model.state_dict()
    state["model.embed_tokens.weight"] = torch.from_numpy(tensors["embed_tokens.weight"].astype(np.float32))
    state["lm_head.weight"] = torch.from_numpy(weights["lm_head"])
    for index in range(model.config.num_hidden_layers):
        for packed, names in _LINEARS.items():
            names = [f"model.layers.{index}.{name}.weight" for name in names]
            rows = torch.from_numpy(weights[f"layers.{index}.{packed}"]).split([len(state[name]) for name in names])
            state |= dict(zip(names, rows, strict=True))
    # A shared table is rounded in another way as head than as embedding.
    config = TinyWaveConfig.from_dict(model.config.to_dict() | {"tie_word_embeddings": False})
    rounded = TinyWaveForCausalLM(config).eval()
    rounded.load_state_dict(state)
    return rounded


def unpacked(array: np.ndarray, bits: int) -> np.ndarray:
    if array.dtype == np.float32 or bits == 8:
        return array
    return np.stack([array & 15, array >> 4], axis=-1).reshape(*array.shape[:-1], -1)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


@pytest.fixture(scope="module")
def teacher():
    return TinyWaveForCausalLM.from_pretrained(TEACHER, dtype="float32").eval()


@pytest.fixture(scope="module")
def exact(teacher, tmp_path_factory):
    """A folder that computes activations in float32, its model, and the same in PyTorch."""
    folder = export_onnx(teacher, None, tmp_path_factory.mktemp("exact") / "onnx", "int8", accuracy_level=1)
    return OnnxForCausalLM.from_pretrained(folder), rounded_in_pytorch(teacher, folder)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """What the verb writes."""
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    assert main(["export", str(TEACHER), str(folder), "--engine", "onnx"]) == 0
    return folder


@pytest.fixture(scope="module")
def ids():
    """The beginning of real speech, `(1, 48)`: a story in units."""
    units = np.array(read_suite(ASSETS / "suites" / "story.parquet")[0].positive_units)
    units = units[np.flatnonzero(np.diff(units, prepend=-1))][:46]
    return torch.tensor([[1, 511, *(units + 512)]])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [32, 128])
def test_logits_are_those_of_the_rounded_weights(teacher, ids, tmp_path, bits, block_size):
    kind = WeightFormat(bits, bits, block_size)
    folder = export_onnx(teacher, None, tmp_path / "onnx", kind, accuracy_level=1)
    expected = rounded_in_pytorch(teacher, folder)(ids).logits
    assert relative_error(OnnxForCausalLM.from_pretrained(folder)(ids).logits, expected) < 1e-4
    assert relative_error(expected, teacher(ids).logits) > 1e-4, "rounding shows"


def test_the_verbs_defaults_keep_what_the_teacher_says(teacher, ids, exported):
    model, _ = load_language_model(exported)
    assert isinstance(model, OnnxForCausalLM) and model.record["weights"] == "int4"
    losses = [
        torch.nn.functional.cross_entropy(net(ids).logits[0, 1:-1], ids[0, 2:]).item() for net in (teacher, model)
    ]
    assert losses[1] == pytest.approx(losses[0], abs=0.05)
    rounded = rounded_in_pytorch(teacher, exported)(ids).logits
    assert 1e-5 < relative_error(model(ids).logits, rounded) < 0.05, "activations are rounded to 8 bits"


def test_grouped_heads_shared_embeddings_odd_widths_and_scaled_positions(tmp_path):
    torch.manual_seed(0)
    config = TinyWaveConfig.from_preset(
        "nano-student",
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=72,
        head_dim=16,
        intermediate_size=100,
        tie_word_embeddings=True,
        num_parallel_heads=1,
        initializer_range=0.2,
        rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0},
    )
    model = TinyWaveForCausalLM(config).eval()
    plain = TinyWaveForCausalLM(TinyWaveConfig.from_dict(config.to_dict() | {"num_parallel_heads": 0})).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    folder = export_onnx(model, None, tmp_path / "onnx", WeightFormat(4, 8, 32), accuracy_level=1)
    loaded, rounded = OnnxForCausalLM.from_pretrained(folder), rounded_in_pytorch(plain, folder)
    ids = torch.randint(0, config.vocab_size, (2, 30))
    assert relative_error(loaded(ids).logits, rounded(ids).logits) < 1e-4
    assert loaded.num_parameters() == sum(parameter.numel() for parameter in plain.parameters())


def test_cached_steps_are_one_pass(exact, ids):
    model, _ = exact
    whole, output = model(ids).logits, model(ids[:, :20])
    logits = [output.logits]
    for start, end in ((20, 27), (27, 28), (28, 29), (29, 48)):
        output = model(ids[:, start:end], past_key_values=output.past_key_values)
        logits.append(output.logits)
    assert torch.allclose(torch.cat(logits, dim=1), whole, atol=1e-4)
    assert output.past_key_values.get_seq_length() == 48


def test_a_cache_that_grows_keeps_what_it_holds(exact):
    model, rounded = exact
    ids = torch.randint(512, 1012, (1, 600), generator=torch.Generator().manual_seed(0))
    cache, addresses = model(ids[:, :100]).past_key_values, set()
    for start in range(100, 600, 50):
        output = model(ids[:, start : start + 50], past_key_values=cache)
        addresses.add(cache.layers[0].keys.data_ptr())
    assert cache.get_seq_length() == 600 and len(addresses) == 2, "moved once in ten passes"
    with torch.no_grad():
        assert relative_error(output.logits, rounded(ids).logits[:, -50:]) < 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_say_what_they_say_alone(exact, ids, side):
    model, _ = exact
    rows, masks = torch.zeros(3, 48, dtype=torch.long), torch.zeros(3, 48, dtype=torch.long)
    for row, length in enumerate((48, 31, 5)):
        place = slice(48 - length, None) if side == "left" else slice(length)
        rows[row, place], masks[row, place] = ids[0, :length], 1
    logits = model(rows, masks).logits
    for row, length in enumerate((48, 31, 5)):
        alone = model(ids[:, :length]).logits[0]
        assert torch.allclose(logits[row, masks[row].bool()], alone, atol=1e-4)
        for kept in (1, torch.tensor([40, 45]), torch.arange(48) > 43):
            expected = logits[row, -1:] if isinstance(kept, int) else logits[row, kept]
            found = model(rows, masks, logits_to_keep=kept).logits[row]
            is_real = masks[row, -1:].bool() if isinstance(kept, int) else masks[row, kept].bool()
            assert torch.allclose(found[is_real], expected[is_real], atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 0.9, "top_k": 20},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": False, "use_cache": False},
    ],
    ids=["greedy", "sampling", "beams", "no cache"],
)
def test_generate_says_the_same_ids_as_pytorch(exact, ids, options):
    padded = torch.cat([torch.zeros(1, 8, dtype=torch.long), ids[:, :22]], dim=1)
    prompt = torch.cat([padded, ids[:, :30]])
    mask = torch.ones_like(prompt)
    mask[0, :8] = 0
    said = []
    for model in exact:
        torch.manual_seed(0)
        said.append(
            model.generate(prompt, attention_mask=mask, output_modality="speech", max_new_tokens=24, **options)
        )
    assert said[0].tolist() == said[1].tolist() and said[0].shape[1] > 40
    assert int(said[0][:, 30:].min()) >= 0 and not torch.equal(said[0][0, 30:], said[0][1, 30:])


def test_ids_are_streamed_and_a_conversation_goes_on_from_its_cache(exact, ids):
    model, _ = exact
    options = {"output_modality": "speech", "max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    first = model.generate(ids, return_dict_in_generate=True, **options)
    assert list(stream_ids(model, input_ids=ids, **options)) == first.sequences[0, 48:].tolist()
    expected = model.generate(first.sequences, **options)
    found = model.generate(first.sequences, past_key_values=first.past_key_values, **options)
    assert found.tolist() == expected.tolist()


def test_caches_of_transformers_are_extended_where_they_stand(exact, ids):
    model, rounded = exact
    whole = model(ids).logits
    with torch.no_grad():
        cache = rounded(ids[:, :30], use_cache=True).past_key_values
    for start, end in ((30, 33), (33, 36)):
        output = model(ids[:, start:end], past_key_values=cache)
        cache.crop(-2)
        assert output.past_key_values is cache and cache.get_seq_length() == end - 2
        output = model(ids[:, end - 2 : end], past_key_values=cache)
        assert torch.allclose(output.logits, whole[:, end - 2 : end], atol=1e-3)
    copied = deepcopy(cache)
    model(ids[:, :3] + 1, past_key_values=cache)
    output = model(ids[:, 36:], past_key_values=copied)
    assert torch.allclose(output.logits, whole[:, 36:], atol=1e-3)


def test_the_pipelines_batches_and_kept_prompts_are_those_of_single_prompts(exact, ids):
    model, _ = exact
    options = {"output_modality": "speech", "max_new_tokens": 12, "do_sample": False}
    prompts = [Prompt(length, ids[:, :length]) for length in (20, 33, 8, 41)]
    for name, new_ids in continue_many(model, prompts, batch_size=3, **options):
        assert new_ids.tolist() == model.generate(ids[:, :name], **options)[0, name:].tolist()
    kept = PromptCache(1000)
    first = kept.generate(model, input_ids=ids[:, :20], **options)
    longer = torch.cat([first, ids[:, 20:30]], dim=1)
    assert kept.generate(model, input_ids=longer, **options).tolist() == model.generate(longer, **options).tolist()
    assert len(kept) >= longer.shape[1]


def test_scores_are_those_of_pytorch(exact, ids):
    sequences = [ids[0, :length].tolist() for length in (48, 20, 33)] + [[1, 511, *range(600, 640)]]
    scores = [score_sequences(model, sequences, scored_ids=range(512, 1012)) for model in exact]
    for found, expected in zip(*scores, strict=True):
        assert found.num_tokens == expected.num_tokens
        assert found.log_likelihood == pytest.approx(expected.log_likelihood, rel=1e-4)


def test_the_exported_folder_continues_a_recording(exported):
    model, processor = load_language_model(exported)
    codec = load_codec(ASSETS / "codec", list(model.config.stream_ranges()), griffin_lim=True)
    prompt = [("speech", load_audio(sorted(RECORDING.glob("*.flac"))[0])[: 2 * 16_000])]
    pipeline = TinyWavePipeline(model, processor, codec)
    (said,) = pipeline(prompt, min_new_tokens=20, max_new_tokens=20, do_sample=False)
    assert said.end > 0.3 and np.isfinite(said.waveform.numpy()).all()
    pieces = list(pipeline.stream(prompt, min_new_tokens=20, max_new_tokens=20, do_sample=False))
    assert sum(len(piece.waveform) for piece in pieces) == len(said.waveform)


def test_the_folder_is_complete_and_is_replaced_as_a_whole(teacher, exported, tmp_path):
    assert {"config.json", "generation_config.json", "tokenizer.json", "processor_config.json"} <= {
        path.name for path in exported.iterdir()
    }
    genai = json.loads((exported / "genai_config.json").read_text())["model"]["decoder"]
    inputs = {value.name for value in onnx.load(exported / "model.onnx", load_external_data=False).graph.input}
    assert {genai["inputs"]["input_ids"], genai["inputs"]["past_key_names"] % 10} <= inputs
    folder = export_onnx(teacher, None, tmp_path / "onnx", "int8")
    export_onnx(teacher, None, folder, "int4")
    broken = TinyWaveForCausalLM.from_pretrained(TEACHER, dtype="float32")
    broken.model.layers[10].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="found NaN or infinity in a weight"):
        export_onnx(broken, None, folder, "int8")
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]
    assert OnnxForCausalLM.from_pretrained(folder).record["weights"] == "int4"


def test_blocks_are_rounded_to_within_half_a_scale_and_packed_low_first():
    weight = torch.randn(6, 70, generator=torch.Generator().manual_seed(0)) + 0.5
    for bits in (4, 8):
        values, scales, zeros = quantize_blocks(weight, bits, 32)
        found = ((values.float() - zeros[..., None]) * scales[..., None]).reshape(6, 96)
        assert values.max() == 2**bits - 1 and (found[:, 70:] == 0).all()
        half = scales.repeat_interleave(32, dim=1)[:, :70] / 2
        # The zero point is rounded, too, which may move the ends of a block by another half.
        assert ((found[:, :70] - weight).abs() <= 2 * half + 1e-6).all()
    packed = pack_bits(torch.tensor([[1, 2, 15]], dtype=torch.uint8), 4)
    assert packed.tolist() == [[1 + 16 * 2, 15]]


def test_what_cannot_be_exported_is_refused(teacher, exported, tmp_path, capsys):
    with pytest.raises(ValueError, match="unknown weights 'int3'; expected one of int4, int8"):
        export_onnx(teacher, None, tmp_path / "x", "int3")
    for changes, message in (
        ({"attention_bias": True}, "found attention_bias=True"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "type 'dynamic'"),
        ({"weight_format": "int8"}, "quantized already"),
        ({"head_dim": 24}, "found head_dim=24; the attention of ONNX Runtime needs a multiple of 16"),
    ):
        model = TinyWaveForCausalLM(TinyWaveConfig.from_preset("nano-student", num_hidden_layers=1, **changes))
        with pytest.raises(ValueError, match=message):
            export_onnx(model, None, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert main(["export", str(TEACHER), str(TEACHER), "--engine", "onnx"]) == 2
    assert "contains files that are no export" in capsys.readouterr().err
    assert main(["export", str(TEACHER), str(tmp_path / "x"), "--engine", "onnx", "--weights", "q8_0"]) == 2
    assert "found --weights q8_0 for onnx; expected one of int4, int8" in capsys.readouterr().err
    assert main(["export", str(exported), str(tmp_path / "x")]) == 2
    assert "holds an export already" in capsys.readouterr().err


def test_what_a_model_in_onnx_cannot_do_is_refused(exact, ids):
    model, _ = exact
    with pytest.raises(ValueError, match="found parallel_heads with an ONNX model, which has none"):
        model.generate(ids, parallel_heads=True)
    with pytest.raises(ValueError, match="copy its folder"):
        model.save_pretrained("anywhere")
    gap = torch.ones_like(ids)
    gap[0, 5] = 0
    with pytest.raises(ValueError, match="an empty row or a gap"):
        model(ids, gap)
    with pytest.raises(ValueError, match=r"mask of shape \(1, 7\) .* expected a mask of shape \(1, 48\)"):
        model(ids, torch.ones(1, 7))
    with pytest.raises(ValueError, match=r"mask of shape \(1, 1, 48, 48\); expected one of padding"):
        model(ids, torch.zeros(1, 1, 48, 48))
    with pytest.raises(ValueError, match="found position_ids that do not count"):
        model(ids, position_ids=torch.zeros(1, 48, dtype=torch.long))
    with pytest.raises(ValueError, match="found 2049 tokens; the graph knows 2048 positions"):
        model(ids.repeat(1, 43)[:, :2049])
    rows = ids.repeat(2, 1)
    cache = model(rows[:, :9]).past_key_values
    with pytest.raises(ValueError, match="found 3 new tokens for each of 2 rows in a cache"):
        model(rows[:, 9:12], past_key_values=cache)
    short = torch.nn.functional.pad(torch.ones(2, 8), (3, 0))
    with pytest.raises(ValueError, match="at most 8 tokens in a row, 9 tokens in the cache and 1 new ones"):
        model(rows[:, 9:10], short, past_key_values=cache)
    half = DynamicCache()
    half.update(torch.zeros(1, 6, 3, 32).half(), torch.zeros(1, 6, 3, 32).half(), 0)
    with pytest.raises(ValueError, match="found a DynamicCache of torch.float16 on cpu"):
        model(ids[:, 3:4], past_key_values=half)


def test_it_stays_on_the_cpu_with_the_threads_of_pytorch(exact):
    model, _ = exact
    assert model.half().to(torch.bfloat16) is model and model.dtype == torch.float32 and model.device.type == "cpu"
    assert model.session.get_session_options().intra_op_num_threads == torch.get_num_threads()


def test_an_export_of_another_version_is_refused(teacher, tmp_path, capsys, monkeypatch):
    folder = export_onnx(teacher, None, tmp_path / "onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs the package onnxruntime: pip install 'tinywave\[export\]'"):
        load_for_scoring(folder)
    record = json.loads((folder / "engine.json").read_text())
    (folder / "engine.json").write_text(json.dumps(record | {"format_version": 0}))
    with pytest.raises(ValueError, match="found engine.json of format 0 in .*; expected format 2. Export the model"):
        load_for_scoring(folder)
    (folder / "engine.json").unlink()
    with pytest.raises(ValueError, match="found no engine.json in"):
        load_for_scoring(folder)


def test_a_layer_goes_on_from_what_was_put_into_it():
    """Keys of another layer have the same shape and strides, and stand elsewhere."""
    first, second = (InPlaceLayer(DynamicLayer()) for _ in range(2))
    for layer, value in ((first, 1.0), (second, 2.0)):
        layer.update(*torch.full((2, 1, 1, 3, 4), value))
    room = first.keys.data_ptr()
    first.update(*torch.full((2, 1, 1, 1, 4), 3.0))
    assert first.keys.data_ptr() == room, "a token is added in place"
    first.keys, first.values = second.keys, second.values
    keys, _ = first.update(*torch.full((2, 1, 1, 1, 4), 4.0))
    assert keys[0, 0, :, 0].tolist() == [2.0, 2.0, 2.0, 4.0]
