"""HuBERT of fairseq and of transformers -> `SpeechEncoder`: the features and units of transformers' HubertModel."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, HubertConfig, HubertModel

from tinywave.cli.main import main
from tinywave.convert.conversion import ConversionRun, ConvertOptions
from tinywave.convert.hubert_checkpoint import fairseq_to_hubert_config, parse_conv_layers
from tinywave.convert.hubert_checkpoint import plan as plan_checkpoint
from tinywave.convert.hubert_folder import plan as plan_folder
from tinywave.convert.key_report import KeyReport
from tinywave.data.audio_io import load_audio

RECORDING = next(Path(__file__).parents[1].joinpath("assets/audio/librivox").glob("*.*"))
CONV_LAYERS = "[({0},10,5)] + [({0},3,2)] * 4 + [({0},2,2)] * 3"
# fairseq's settings as `mhubert_base_25hz.pt` nests them, with tiny widths.
MODEL_CFG = {
    "_name": "hubert",
    "label_rate": 25.0,
    "extractor_mode": "default",
    "encoder_layers": 12,
    "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 32,
    "encoder_attention_heads": 2,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "conv_feature_layers": CONV_LAYERS.format(16),
    "conv_bias": False,
    "conv_pos": 16,
    "conv_pos_groups": 4,
    "conv_pos_batch_norm": True,
    "required_seq_len_multiple": 2,
}
TASK_CFG = {"sample_rate": 16000, "normalize": False, "label_rate": 25.0}


def reference_hubert(batch_norm, norm="group"):
    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=24,
        num_hidden_layers=12,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=[16] * 8,
        conv_kernel=[10, 3, 3, 3, 3, 2, 2, 2],
        conv_stride=[5, 2, 2, 2, 2, 2, 2, 2],
        feat_extract_norm=norm,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        conv_pos_batch_norm=batch_norm,
        layerdrop=0.0,
    )
    model = HubertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if batch_norm:
            model.encoder.pos_conv_embed.batch_norm.running_mean.normal_()
            model.encoder.pos_conv_embed.batch_norm.running_var.uniform_(0.5, 2.0)
    return model


def fairseq_state(model, norm="group"):
    """A HubertModel's tensors under the names that fairseq gives them, plus the heads of pretraining."""
    layer = {
        "attention.k_proj": "self_attn.k_proj",
        "attention.v_proj": "self_attn.v_proj",
        "attention.q_proj": "self_attn.q_proj",
        "attention.out_proj": "self_attn.out_proj",
        "layer_norm": "self_attn_layer_norm",
        "feed_forward.intermediate_dense": "fc1",
        "feed_forward.output_dense": "fc2",
        "final_layer_norm": "final_layer_norm",
    }
    norm_name = {"group": "2", "layer": "2.1"}[norm]
    state = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if name == "masked_spec_embed":
            state["mask_emb"] = tensor
        elif parts[0] == "feature_extractor":
            kind = {"conv": "0", "layer_norm": norm_name}[parts[3]]
            state[f"feature_extractor.conv_layers.{parts[2]}.{kind}.{parts[4]}"] = tensor
        elif parts[0] == "feature_projection":
            state[{"layer_norm": "layer_norm", "projection": "post_extract_proj"}[parts[1]] + f".{parts[2]}"] = tensor
        elif parts[1] == "layers":
            state[f"encoder.layers.{parts[2]}.{layer['.'.join(parts[3:-1])]}.{parts[-1]}"] = tensor
        elif "batch_norm" in name:
            state[f"encoder.pos_conv.0.{parts[-1]}"] = tensor
        elif "parametrizations" in name:
            state[f"encoder.pos_conv.0.weight_{'gv'[int(parts[-1][-1])]}"] = tensor
        elif parts[1] == "pos_conv_embed":
            state[f"encoder.pos_conv.{1 if model.config.conv_pos_batch_norm else 0}.{parts[-1]}"] = tensor
        else:
            state[name] = tensor
    heads = {"final_proj.weight": (8, 24), "final_proj.bias": (8,), "label_embs_concat": (504, 8)}
    return state | {name: torch.zeros(shape) for name, shape in heads.items()}


def reference_quantizer(width=24, units=10):
    torch.manual_seed(1)
    between = width - (units + 1)
    sizes = [width, width - between // 4, width - between // 2, units + 1]
    return nn.Sequential(
        nn.Linear(sizes[0], sizes[1]), nn.LeakyReLU(), nn.Linear(sizes[1], sizes[2]), nn.LeakyReLU(),
        nn.Linear(sizes[2], sizes[3]),
    )  # fmt: skip


def write_spirit_lm_hubert(folder, model, quantizer, norm="group", **changes):
    folder.mkdir(parents=True)
    settings = MODEL_CFG | {"conv_pos_batch_norm": model.config.conv_pos_batch_norm} | changes
    content = {
        "model_cfg": settings,
        "task_cfg": TASK_CFG,
        "model_weight": fairseq_state(model, norm),
        "dictionaries_symbols": [["<s>", "<pad>", "</s>", "<unk>", "0", "1"]],
    }
    torch.save(content, folder / "mhubert_base_25hz.pt")
    units = quantizer[-1].out_features - 1
    settings = {"vocab_size": units, "dim": 24, "upstream_dim": 24}
    torch.save({"model_cfg": settings, "model_weight": quantizer.state_dict()}, folder / "L11_quantizer_500.pt")


def convert(plan, source, destination, **options):
    options = ConvertOptions(**options)
    run = ConversionRun(plan(source, options), destination, options)
    run.run()
    return run


@pytest.fixture(scope="module")
def waveform():
    return torch.from_numpy(load_audio(RECORDING)[: 16000 * 2])


@pytest.mark.parametrize(("batch_norm", "norm"), [(True, "group"), (False, "group"), (False, "layer")])
def test_fairseq_checkpoint_gives_the_units_of_hubert_and_the_quantizer(batch_norm, norm, waveform, tmp_path):
    reference, quantizer = reference_hubert(batch_norm, norm), reference_quantizer()
    with torch.no_grad():
        expected = reference(waveform[None], output_hidden_states=True).hidden_states[11][0]
        # Random features hardly move; without their mean and scale, units differ.
        quantizer[0].weight.div_(expected.std(0) / 5)
        quantizer[0].bias.copy_(-quantizer[0].weight @ expected.mean(0))
        quantizer[4].bias.sub_(quantizer(expected).mean(0))
        units = quantizer(expected).argmax(-1)
    mode = {"group": "default", "layer": "layer_norm"}[norm]
    write_spirit_lm_hubert(tmp_path / "hubert_25hz", reference, quantizer, norm, extractor_mode=mode)
    assert main(["convert", str(tmp_path / "hubert_25hz"), str(tmp_path / "converted")]) == 0
    encoder = AutoModel.from_pretrained(tmp_path / "converted", trust_remote_code=True).eval()
    features = encoder.extract_features([waveform])[0]
    assert features.shape == (49, 24) and encoder.frame_rate == 25.0
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert len(units.unique()) > 4 and encoder.num_units == 10
    found = encoder.encode([waveform])[0]
    assert torch.equal(found[units != 10], units[units != 10])
    assert (found < 10).all()


def test_layers_above_and_pretraining_heads_are_ignored_with_their_reason(tmp_path):
    write_spirit_lm_hubert(tmp_path / "hubert_25hz", reference_hubert(True), reference_quantizer())
    run = convert(plan_checkpoint, tmp_path / "hubert_25hz", tmp_path / "converted")
    report: KeyReport = run.reports[0]
    assert sum(reason == "above layer 11, whose output is quantized" for reason in report.ignored.values()) == 16
    heads = {name for name, reason in report.ignored.items() if reason == "a head of pretraining"}
    assert heads == {"final_proj.weight", "final_proj.bias", "label_embs_concat"}
    assert report.renamed["encoder.layers.10.fc1.bias"] == (
        "backbone.encoder.layers.10.feed_forward.intermediate_dense.bias"
    )
    assert report.renamed["0.weight"] == "quantizer.layers.0.weight"


def test_published_sizes_give_the_published_quantizer_and_frame_count(tmp_path):
    settings = MODEL_CFG | {"encoder_embed_dim": 768, "conv_feature_layers": CONV_LAYERS.format(512)}
    config = fairseq_to_hubert_config(settings, Path("mhubert_base_25hz.pt"))
    assert (config["hidden_size"], config["conv_dim"]) == (768, [512] * 8)
    samples = 146_160
    for kernel, stride in zip(config["conv_kernel"], config["conv_stride"], strict=True):
        samples = (samples - kernel) // stride + 1
    assert samples == 228
    published = nn.Sequential(nn.Linear(768, 702), nn.LeakyReLU(), nn.Linear(702, 635), nn.LeakyReLU())
    published.append(nn.Linear(635, 501))
    write_spirit_lm_hubert(tmp_path / "hubert_25hz", reference_hubert(True), reference_quantizer())
    sizes = {"vocab_size": 500, "dim": 768, "upstream_dim": 768}
    torch.save(
        {"model_cfg": sizes, "model_weight": published.state_dict()}, tmp_path / "hubert_25hz" / "L11_quantizer_500.pt"
    )
    # Beside the tiny HuBERT of width 24 only its input misfits: the hidden sizes are those of the published file.
    with pytest.raises(ValueError, match=r"of another shape: quantizer.layers.0.weight .*\[702, 768\]"):
        convert(plan_checkpoint, tmp_path / "hubert_25hz", tmp_path / "converted")


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 3", [(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 3),
        ("[(4, 2, 1)]", [(4, 2, 1)]),
    ],
)
def test_convolutions_are_read_without_eval(text, layers):
    assert parse_conv_layers(text) == layers


@pytest.mark.parametrize(
    "text",
    ["__import__('os').getcwd()", "[(1,2)]", "[]", "[(1,2,3)", "[(1,2,3)] * [2]", "9", "[(1,2,3)] * 65536 * 65536"],
)
def test_other_expressions_are_refused(text):
    with pytest.raises(ValueError, match="cannot be read"):
        parse_conv_layers(text)


def test_settings_that_transformers_has_no_model_for_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has layer_type 'conformer'; expected 'transformer'"):
        fairseq_to_hubert_config(MODEL_CFG | {"layer_type": "conformer"}, Path("file.pt"))
    write_spirit_lm_hubert(tmp_path / "a", reference_hubert(True), reference_quantizer())
    content = torch.load(tmp_path / "a" / "mhubert_base_25hz.pt", weights_only=True)
    torch.save(content | {"task_cfg": TASK_CFG | {"normalize": True}}, tmp_path / "a" / "mhubert_base_25hz.pt")
    with pytest.raises(ValueError, match="expects normalized waveforms"):
        plan_checkpoint(tmp_path / "a", ConvertOptions())
    torch.save({"model": {}}, tmp_path / "a" / "mhubert_base_25hz.pt")
    with pytest.raises(ValueError, match="has no 'model_cfg'; expected a dict of"):
        plan_checkpoint(tmp_path / "a", ConvertOptions())


def write_hubert_folder(folder, model, old_names=False):
    """slprl/mhubert-base-25hz: transformers' HubertModel, safetensors."""
    folder.mkdir()
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    for old, number in (("weight_g", 0), ("weight_v", 1)):
        name = f"encoder.pos_conv_embed.conv.parametrizations.weight.original{number}"
        if old_names and name in state:
            state[f"encoder.pos_conv_embed.conv.{old}"] = state.pop(name)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    settings = model.config.to_dict() | {"architectures": ["HubertModel"], "transformers_version": "4.46.0"}
    (folder / "config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(("batch_norm", "old_names"), [(True, False), (False, False), (False, True)])
def test_hubert_folder_with_kmeans_gives_the_nearest_centroid(batch_norm, old_names, waveform, tmp_path):
    source = tmp_path / "mhubert-base-25hz"
    reference = reference_hubert(batch_norm)
    write_hubert_folder(source, reference, old_names)
    with torch.no_grad():
        features = reference(waveform[None], output_hidden_states=True).hidden_states[11][0]
    centroids = features[torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:20]].numpy()
    np.save(source / "kmeans.npy", centroids)
    run = convert(plan_folder, source, tmp_path / "converted")
    encoder = AutoModel.from_pretrained(tmp_path / "converted", trust_remote_code=True).eval()
    expected = ((features.numpy()[:, None] - centroids) ** 2).sum(-1).argmin(-1)
    assert encoder.encode([waveform])[0].tolist() == expected.tolist()
    assert len(set(expected)) > 5
    assert run.reports[0].computed.keys() == {"quantizer.mean", "quantizer.standard_deviation"}
    assert "license: mit" in (tmp_path / "converted" / "README.md").read_text()


def test_centroids_may_be_safetensors_named_on_the_command_line(tmp_path):
    source = tmp_path / "mhubert-base-25hz"
    write_hubert_folder(source, reference_hubert(True))
    centroids = torch.randn(7, 24)
    save_file({"cluster_centers": centroids}, tmp_path / "km.safetensors")
    arguments = ["convert", str(source), str(tmp_path / "converted"), "--kmeans", str(tmp_path / "km.safetensors")]
    assert main(arguments) == 0
    state = load_file(tmp_path / "converted" / "model.safetensors")
    assert torch.equal(state["quantizer.centroids"], centroids)
    assert torch.equal(state["quantizer.standard_deviation"], torch.ones(24))


def test_centroids_in_a_pickle_are_refused_with_the_way_to_export_them(tmp_path, capsys):
    source = tmp_path / "mhubert-base-25hz"
    write_hubert_folder(source, reference_hubert(True))
    trap = tmp_path / "trap"

    class Payload:
        def __reduce__(self):
            return Path.touch, (trap,)

    (tmp_path / "km500.bin").write_bytes(pickle.dumps(Payload()))
    arguments = ["convert", str(source), str(tmp_path / "converted"), "--kmeans", str(tmp_path / "km500.bin")]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "is refused" in message and "joblib.load('THE_FILE').cluster_centers_" in message
    np.save(tmp_path / "objects.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="holds Python objects"):
        plan_folder(source, ConvertOptions(kmeans=tmp_path / "objects.npy"))
    with pytest.raises(ValueError, match="holds no k-means centroids"):
        plan_folder(source, ConvertOptions())
    np.save(tmp_path / "flat.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"float64 of shape \[3\]; expected floats"):
        plan_folder(source, ConvertOptions(kmeans=tmp_path / "flat.npy"))
    assert not trap.exists()


def test_the_export_line_makes_what_the_converter_reads(tmp_path):
    """The command of the error message, run on a real scikit-learn model."""
    from sklearn.cluster import MiniBatchKMeans

    model = MiniBatchKMeans(3, n_init=1, random_state=0).fit(np.random.default_rng(0).normal(size=(50, 24)))
    (tmp_path / "km.bin").write_bytes(pickle.dumps(model))
    source = tmp_path / "mhubert-base-25hz"
    write_hubert_folder(source, reference_hubert(True))
    with pytest.raises(ValueError) as caught:
        plan_folder(source, ConvertOptions(kmeans=tmp_path / "km.bin"))
    command = str(caught.value).split('python -c "')[1].split('"')[0].replace("THE_FILE", "km.bin")
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True)
    run = convert(plan_folder, source, tmp_path / "converted", kmeans=tmp_path / "kmeans.npy")
    state = load_file(run.destination / "model.safetensors")
    np.testing.assert_allclose(state["quantizer.centroids"], model.cluster_centers_, rtol=1e-6)


def test_a_checkpoint_that_needs_fairseq_is_refused_naming_the_class(tmp_path):
    """TWIST's own file of this HuBERT is such a pickle: it holds fairseq's objects."""
    write_spirit_lm_hubert(tmp_path / "hubert_25hz", reference_hubert(True), reference_quantizer())
    module = type(sys)("fairseq_data")

    class Dictionary:
        symbols = ["<s>"]

    Dictionary.__module__, Dictionary.__qualname__ = "fairseq_data", "Dictionary"
    module.Dictionary = Dictionary
    sys.modules["fairseq_data"] = module
    try:
        content = {"model_weight": {}, "task_state": {"dictionaries": [Dictionary()]}}
        torch.save(content, tmp_path / "hubert_25hz" / "mhubert_base_25hz.pt")
    finally:
        del sys.modules["fairseq_data"]
    with pytest.raises(ValueError, match=r"asks for fairseq_data\.Dictionary: .* it is refused"):
        plan_checkpoint(tmp_path / "hubert_25hz", ConvertOptions())
