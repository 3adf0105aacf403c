"""SPIRIT-LM's pitch, style and vocoder checkpoints, alone and as a release, against computations from them."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F
from transformers import AutoModel, Wav2Vec2Config, Wav2Vec2ForSequenceClassification

from tinywave.cli.main import main
from tinywave.convert.code_hifigan import plan_other, plan_spirit_lm, settings_to_hifigan_config
from tinywave.convert.conversion import ConversionRun, ConvertOptions
from tinywave.convert.f0_vqvae import plan as plan_pitch
from tinywave.convert.f0_vqvae import vqvae_to_pitch_config
from tinywave.convert.formats import FORMATS, detect_format
from tinywave.convert.style_classifier import plan as plan_style
from tinywave.data.audio_io import load_audio
from tinywave.hifigan_tinywave import HifiGanVocoder
from tinywave.pitch_encoder_tinywave import PitchEncoder

RECORDING = next(Path(__file__).parents[1].joinpath("assets/audio/librivox").glob("*.flac"))


def convert(plan, source, destination):
    run = ConversionRun(plan(source, ConvertOptions()), destination, ConvertOptions())
    run.run()
    return AutoModel.from_pretrained(destination, trust_remote_code=True).eval(), run.reports[0]


# Pitch: a VQ-VAE in Jukebox's naming, computed from the dict of tensors alone.

STAGES, DEPTH, GROWTH = 4, 4, 3


def pitch_shapes(width, code_size, codes):
    """Name and shape of every tensor under the key "model" of `vqvae_f0_quantizer/model.pt`."""
    shapes = {"vq.level_blocks.0.k": (codes, code_size)}

    def convolution(name, out_size, in_size, kernel, bias=None):
        shapes[f"{name}.weight"] = (out_size, in_size, kernel)
        shapes[f"{name}.bias"] = (bias or out_size,)

    def residual(name):
        for layer in range(DEPTH):
            convolution(f"{name}.model.{layer}.model.1", width, width, 3)
            convolution(f"{name}.model.{layer}.model.3", width, width, 1)

    encoder, decoder = "encoder.level_blocks.0.model", "decoder.level_blocks.0.model"
    for stage in range(STAGES):
        convolution(f"{encoder}.{stage}.0", width, 2 if stage == 0 else width, 4)
        residual(f"{encoder}.{stage}.1")
        residual(f"{decoder}.{stage + 1}.0")
        out = code_size if stage == STAGES - 1 else width
        convolution(f"{decoder}.{stage + 1}.1", width, out, 4, bias=out)
    convolution(f"{encoder}.{STAGES}", code_size, width, 3)
    convolution(f"{decoder}.0", width, code_size, 3)
    convolution("decoder.out", 2, code_size, 3)
    return shapes


def random_state(shapes, scale=0.3):
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        fan_in = max(1, int(np.prod(shape[1:]))) if name.endswith("weight") else 1
        state[name] = torch.randn(shape, generator=generator) * (fan_in**-0.5 if fan_in > 1 else scale)
    return state


def residual_layers(state, name, hidden):
    for layer in range(DEPTH):
        prefix = f"{name}.model.{layer}.model"
        dilation = GROWTH**layer
        update = F.conv1d(
            hidden.relu(), state[f"{prefix}.1.weight"], state[f"{prefix}.1.bias"], padding=dilation, dilation=dilation
        )
        hidden = hidden + F.conv1d(update.relu(), state[f"{prefix}.3.weight"], state[f"{prefix}.3.bias"])
    return hidden


def reference_codes(state, features):
    """features `(2, T)` -> codes `(T // 16,)`."""
    name, hidden = "encoder.level_blocks.0.model", features[None]
    for stage in range(STAGES):
        weights = (state[f"{name}.{stage}.0.weight"], state[f"{name}.{stage}.0.bias"])
        hidden = residual_layers(state, f"{name}.{stage}.1", F.conv1d(hidden, *weights, stride=2, padding=1))
    latents = F.conv1d(hidden, state[f"{name}.{STAGES}.weight"], state[f"{name}.{STAGES}.bias"], padding=1)[0].T
    return torch.cdist(latents, state["vq.level_blocks.0.k"]).argmin(-1)


def reference_f0(state, codes):
    """codes `(N,)` -> relative F0 `(16 N,)`."""
    name, hidden = "decoder.level_blocks.0.model", state["vq.level_blocks.0.k"][codes].T[None]
    hidden = F.conv1d(hidden, state[f"{name}.0.weight"], state[f"{name}.0.bias"], padding=1)
    for stage in range(1, STAGES + 1):
        hidden = residual_layers(state, f"{name}.{stage}.0", hidden)
        weights = (state[f"{name}.{stage}.1.weight"], state[f"{name}.{stage}.1.bias"])
        hidden = F.conv_transpose1d(hidden, *weights, stride=2, padding=1)
    return F.conv1d(hidden, state["decoder.out.weight"], state["decoder.out.bias"], padding=1)[0, 0]


def pitch_settings(width=8, code_size=12, codes=10):
    block = {"input_emb_width": 2, "output_emb_width": code_size, "levels": 1, "downs_t": [4], "strides_t": [2]}
    block |= {"width": width, "depth": DEPTH, "m_conv": 1.0, "dilation_growth_rate": GROWTH}
    codebook = {"l_bins": codes, "emb_width": code_size, "mu": 0.99, "levels": 1}
    return {
        "features": "norm_f0_interp,vuv", "speaker_norm": True, "encoder_params": block, "decoder_params": block,
        "vq_params": codebook,
    }  # fmt: skip


def write_pitch(folder, **changes):
    folder.mkdir(parents=True)
    state = random_state(pitch_shapes(8, 12, 10))
    # Codes that the random encoder really reaches, so that several are chosen.
    state["vq.level_blocks.0.k"] *= 0.1
    (folder / "config.yaml").write_text(yaml.safe_dump(pitch_settings() | changes))
    torch.save({"model": state, "steps": 3}, folder / "model.pt")
    return state


def contour():
    """A melody of 2 s with an unvoiced gap; F0 is known everywhere, as after interpolation."""
    frames = torch.arange(400)
    f0 = 180 + 60 * torch.sin(frames / 30) + 20 * torch.sin(frames / 7)
    voiced = (frames < 150) | (frames > 210)
    return f0, voiced


def test_pitch_codes_and_contour_are_those_of_the_checkpoint(tmp_path):
    state = write_pitch(tmp_path / "vqvae_f0_quantizer")
    encoder, report = convert(plan_pitch, tmp_path / "vqvae_f0_quantizer", tmp_path / "converted")
    f0, voiced = contour()
    features = torch.stack([f0 - f0[voiced].mean(), voiced.float()])
    expected = reference_codes(state, features)
    assert len(expected.unique()) > 2
    assert encoder.f0_to_codes([(f0, voiced)])[0].tolist() == expected.tolist()
    codes = torch.tensor([3, 3, 9, 0, 5, 1])
    torch.testing.assert_close(encoder.codes_to_f0(codes), reference_f0(state, codes), rtol=1e-4, atol=1e-4)
    assert report.computed == {"quantizer.code_counts": "ones: only training reads them"}
    assert len(report.renamed) == len(state)


def test_published_pitch_sizes_fit_name_by_name():
    config = vqvae_to_pitch_config(pitch_settings(32, 128, 64), Path("config.yaml"))
    with torch.device("meta"):
        model = PitchEncoder(config)
    shapes = pitch_shapes(32, 128, 64)
    ours = sorted(tuple(tensor.shape) for name, tensor in model.state_dict().items() if "code_counts" not in name)
    assert ours == sorted(shapes.values())
    assert 200_000 < sum(int(np.prod(shape)) for shape in shapes.values()) < 216_000


def test_settings_of_another_vqvae_are_refused(tmp_path):
    write_pitch(tmp_path / "a", features="f0,vuv")
    with pytest.raises(ValueError, match="has features 'f0,vuv'; expected 'norm_f0_interp,vuv'"):
        plan_pitch(tmp_path / "a", ConvertOptions())
    write_pitch(tmp_path / "b", encoder_params=pitch_settings()["encoder_params"] | {"strides_t": [3]})
    with pytest.raises(ValueError, match=r"encoder_params.strides_t \[3\]; expected \[2\]"):
        plan_pitch(tmp_path / "b", ConvertOptions())
    write_pitch(tmp_path / "c", vq_params={})
    with pytest.raises(ValueError, match="not the configuration of a pitch VQ-VAE"):
        plan_pitch(tmp_path / "c", ConvertOptions())


# Style: transformers' own classifier, its frames averaged over windows.


def write_style(folder, layer_sum=False, id2label=None):
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=[16] * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, classifier_proj_size=12, num_labels=6,
        use_weighted_layer_sum=layer_sum, layerdrop=0.0,
    )  # fmt: skip
    model = Wav2Vec2ForSequenceClassification(config).eval()
    state = model.state_dict()
    prefix = "wav2vec2.encoder.pos_conv_embed.conv."
    for old, number in (("weight_g", 0), ("weight_v", 1)):
        state[prefix + old] = state.pop(f"{prefix}parametrizations.weight.original{number}")
    torch.save(state, folder / "pytorch_model.bin")
    settings = config.to_dict() | {"architectures": ["Wav2Vec2ForSequenceClassification"], "torch_dtype": "float32"}
    settings["id2label"] = id2label or {str(n): f"LABEL_{n}" for n in range(6)}
    settings["label2id"] = {label: int(n) for n, label in settings["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(settings))
    return model


@pytest.mark.parametrize("layer_sum", [False, True])
def test_styles_are_those_of_the_last_layer_averaged_over_windows(layer_sum, tmp_path):
    reference = write_style(tmp_path / "style_encoder_w2v2", layer_sum)
    encoder, report = convert(plan_style, tmp_path / "style_encoder_w2v2", tmp_path / "converted")
    waveform = torch.from_numpy(load_audio(RECORDING)[: 16000 * 4])
    with torch.no_grad():
        normalized = (waveform - waveform.mean()) / (waveform.var(correction=0) + 1e-7).sqrt()
        frames = reference.projector(reference.wav2vec2(normalized[None]).last_hidden_state[0])
        windows = torch.stack([frames[start : start + 50].mean(0) for start in range(0, len(frames), 50)])
        expected = reference.classifier(windows)
        found = encoder(waveform[None]).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert encoder.encode([waveform])[0].tolist() == expected.argmax(-1).tolist()
    assert encoder.config.style_names is None and encoder.num_styles == 6
    reasons = {"layer_weights": "SPIRIT-LM reads the last layer alone"} if layer_sum else {}
    assert report.ignored == reasons


def test_style_names_are_kept_where_there_are_any(tmp_path):
    names = ["happy", "sad", "angry", "calm", "laughing", "whisper"]
    write_style(tmp_path / "style", id2label={str(n): name for n, name in enumerate(names)})
    encoder, _ = convert(plan_style, tmp_path / "style", tmp_path / "converted")
    assert encoder.config.style_names == names


# Vocoders: code HiFi-GAN computed from the dict of tensors alone.


def vocoder_settings(**changes):
    """config.json of the speech-resynthesis work at tiny widths; the published one has 501, 512, 128."""
    return {
        "resblock": "1", "batch_size": 16, "learning_rate": 0.0002, "seed": 1234,
        "upsample_rates": [5, 4, 4, 4, 2], "upsample_kernel_sizes": [11, 8, 8, 8, 4], "upsample_initial_channel": 32,
        "resblock_kernel_sizes": [3, 7, 11], "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
        "num_embeddings": 11, "embedding_dim": 8, "model_in_dim": 32,
        "multispkr": "from_input_file", "num_speakers": 4, "segment_size": 17920, "code_hop_size": 640,
        "num_mels": 80, "sampling_rate": 16000, "dur_prediction_weight": 1.0,
        "dur_predictor_params": {
            "encoder_embed_dim": 8, "var_pred_hidden_dim": 8, "var_pred_kernel_size": 3, "var_pred_dropout": 0.5
        },
    } | changes  # fmt: skip


EXPRESSIVE = {"num_f0_tokens": 6, "f0_hop_size": 1280, "num_style_tokens": 5, "style_hop_size": 16000}
BASE = {"multistyle": "from_input_file", "num_styles": 34, "model_in_dim": 24}


def vocoder_shapes(settings):
    """Name and shape of every tensor under the key "generator" of generator.pt."""
    width, channels = settings["embedding_dim"], settings["upsample_initial_channel"]
    tables = {"dict": settings["num_embeddings"], "f0_dict": settings.get("num_f0_tokens")}
    tables |= {"style_dict": settings.get("num_style_tokens")}
    tables |= {"spkr": settings.get("num_speakers", 200) if settings.get("multispkr") else None}
    tables |= {"style": settings.get("num_styles", 100) if settings.get("multistyle") else None}
    shapes = {f"{name}.weight": (size, width) for name, size in tables.items() if size}
    durations = settings.get("dur_predictor_params")
    if durations:
        size, kernel = durations["var_pred_hidden_dim"], durations["var_pred_kernel_size"]
        for number, in_size in ((1, durations["encoder_embed_dim"]), (2, size)):
            shapes[f"dur_predictor.conv{number}.0.weight"] = (size, in_size, kernel)
            shapes[f"dur_predictor.conv{number}.0.bias"] = (size,)
            shapes |= {f"dur_predictor.ln{number}.{kind}": (size,) for kind in ("weight", "bias")}
        shapes |= {"dur_predictor.proj.weight": (1, size), "dur_predictor.proj.bias": (1,)}

    def normed(name, out_size, in_size, kernel, transposed=False):
        shape = (in_size, out_size, kernel) if transposed else (out_size, in_size, kernel)
        shapes.update({f"{name}.weight_g": (shape[0], 1, 1), f"{name}.weight_v": shape, f"{name}.bias": (out_size,)})

    normed("conv_pre", channels, settings["model_in_dim"], 7)
    block = 0
    for stage, kernel in enumerate(settings["upsample_kernel_sizes"]):
        normed(f"ups.{stage}", channels // 2, channels, kernel, transposed=True)
        channels //= 2
        for size in settings["resblock_kernel_sizes"]:
            for convolutions in ("convs1", "convs2"):
                for layer in range(3):
                    normed(f"resblocks.{block}.{convolutions}.{layer}", channels, channels, size)
            block += 1
    normed("conv_post", 1, channels, 7)
    return shapes


def vocoder_state(settings):
    state = random_state(vocoder_shapes(settings))
    for name, tensor in state.items():
        if name.endswith("weight_v"):
            state[name] = tensor * int(np.prod(tensor.shape[1:])) ** -0.5
        if name.endswith("weight_g"):
            state[name] = 1 + 0.1 * tensor
    return state


def reference_waveform(state, settings, units, durations, pitch=None, style=None, speaker=0, constant_style=0):
    """The generator's function (HiFi-GAN, arXiv 2010.05646) on codes that are already one a unit."""
    parts = [state["dict.weight"][units]]
    parts += [state["f0_dict.weight"][pitch]] if "f0_dict.weight" in state else []
    parts += [state["style_dict.weight"][style]] if "style_dict.weight" in state else []
    for name, number in (("spkr.weight", speaker), ("style.weight", constant_style)):
        parts += [state[name][number].expand(len(units), -1)] if name in state else []
    hidden = torch.cat(parts, dim=-1).repeat_interleave(durations, dim=0).T[None]

    def weight(name):
        direction = state[f"{name}.weight_v"]
        return state[f"{name}.weight_g"] * direction / direction.flatten(1).norm(dim=1)[:, None, None]

    def convolve(name, hidden, dilation=1):
        kernel = weight(name)
        padding = dilation * (kernel.shape[-1] - 1) // 2
        return F.conv1d(hidden, kernel, state[f"{name}.bias"], padding=padding, dilation=dilation)

    hidden = convolve("conv_pre", hidden)
    stages = zip(settings["upsample_rates"], settings["upsample_kernel_sizes"], strict=True)
    for stage, (rate, kernel) in enumerate(stages):
        hidden = F.conv_transpose1d(
            F.leaky_relu(hidden, 0.1), weight(f"ups.{stage}"), state[f"ups.{stage}.bias"], stride=rate,
            padding=(kernel - rate) // 2,
        )  # fmt: skip
        outputs = []
        for block in range(3 * stage, 3 * stage + 3):
            output = hidden
            for layer, dilation in enumerate((1, 3, 5)):
                update = convolve(f"resblocks.{block}.convs1.{layer}", F.leaky_relu(output, 0.1), dilation)
                output = output + convolve(f"resblocks.{block}.convs2.{layer}", F.leaky_relu(update, 0.1))
            outputs.append(output)
        hidden = sum(outputs) / 3
    return torch.tanh(convolve("conv_post", F.leaky_relu(hidden, 0.01)))[0, 0]


def reference_durations(state, units):
    hidden = state["dict.weight"][units]
    for number in (1, 2):
        prefix = f"dur_predictor.conv{number}.0"
        hidden = F.conv1d(hidden.T[None], state[f"{prefix}.weight"], state[f"{prefix}.bias"], padding=1).relu()[0].T
        norm = f"dur_predictor.ln{number}"
        hidden = F.layer_norm(hidden, hidden.shape[-1:], state[f"{norm}.weight"], state[f"{norm}.bias"])
    log_durations = hidden @ state["dur_predictor.proj.weight"][0] + state["dur_predictor.proj.bias"]
    return (log_durations.exp() - 1).round().clamp(min=1).long()


def write_vocoder(folder, settings, weights="generator.pt", prefix="", speakers=(), styles=()):
    folder.mkdir(parents=True, exist_ok=True)
    state = vocoder_state(settings)
    if "dur_predictor.proj.bias" in state:
        state["dur_predictor.proj.bias"] += 1.5
    torch.save({"generator": state}, folder / weights)
    (folder / f"{prefix}config.json").write_text(json.dumps(settings))
    for name, names in (("speakers", speakers), ("styles", styles)):
        if names:
            (folder / f"{prefix}{name}.txt").write_text("\n".join(names) + "\n")
    return state


UNITS = torch.tensor([3, 7, 0, 10, 4, 9])
DURATIONS = torch.tensor([2, 1, 4, 1, 3, 2])


def test_expressive_vocoder_speaks_what_the_checkpoint_speaks(tmp_path):
    settings = vocoder_settings(**EXPRESSIVE)
    source = tmp_path / "hifigan_spiritlm_expressive_w2v2"
    state = write_vocoder(source, settings, speakers=["ex01", "ex02", "ex03", "ex04"])
    vocoder, report = convert(plan_spirit_lm, source, tmp_path / "converted")
    pitch, style = torch.tensor([0, 5, 2, 2, 1, 3]), torch.tensor([4, 4, 0, 0, 1, 1])
    expected = reference_waveform(state, settings, UNITS, DURATIONS, pitch, style, speaker=2)
    found = vocoder.units_to_waveform(UNITS, DURATIONS, pitch, style, speaker="ex03")
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (vocoder.config.pitch_rate, vocoder.config.style_rate, vocoder.config.unit_rate) == (12.5, 1.0, 25.0)
    predicted = reference_durations(state, UNITS)
    assert vocoder.predict_durations(UNITS[None])[0].tolist() == predicted.tolist() and predicted.max() > 1
    assert report.renamed["ups.0.weight_g"] == "ups.0.parametrizations.weight.original0"
    card = (tmp_path / "converted" / "README.md").read_text()
    assert "speaker 2" in card and "FAIR Noncommercial Research License" in card


def test_base_vocoder_has_one_style_for_an_utterance(tmp_path):
    settings = vocoder_settings(**BASE)
    source = tmp_path / "hifigan_spiritlm_base"
    styles = [f"style-{n}" for n in range(34)]
    state = write_vocoder(source, settings, speakers=["a", "b", "c", "d"], styles=styles)
    vocoder, _ = convert(plan_spirit_lm, source, tmp_path / "converted")
    expected = reference_waveform(state, settings, UNITS, DURATIONS, speaker=1, constant_style=8)
    found = vocoder.units_to_waveform(UNITS, DURATIONS, style="style-8", speaker=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("weights", "prefix", "name_file"),
    [
        ("hifigan_lj_mhubert_base_25hz.pt", "hifigan_lj_mhubert_base_25hz_", True),
        ("hifigan_expresso_generator.pt", "hifigan_expresso_", True),
        ("g_00500000", "", False),
        ("model.pt", "", False),
    ],
)
def test_textlesslib_and_fairseq_vocoders(weights, prefix, name_file, tmp_path, capsys):
    """One speaker, no style, as TWIST's. In textlesslib's folder the companions begin with their vocoder's name."""
    settings = vocoder_settings(multispkr=None, model_in_dim=8)
    source = tmp_path / "textless"
    state = write_vocoder(source, settings, weights, prefix)
    if name_file:
        (source / "another.pt").write_bytes(b"not ours")
    path = source / weights if name_file else source
    assert detect_format(path) == "code-hifigan"
    assert main(["convert", str(path), str(tmp_path / "converted")]) == 0
    assert "Licence of the weights: unknown: check the source." in capsys.readouterr().out
    vocoder = HifiGanVocoder.from_pretrained(tmp_path / "converted").eval()
    expected = reference_waveform(state, settings, UNITS, DURATIONS)
    torch.testing.assert_close(vocoder.units_to_waveform(UNITS, DURATIONS), expected, rtol=1e-4, atol=1e-5)
    vocoder.remove_weight_norm()
    torch.testing.assert_close(vocoder.units_to_waveform(UNITS, DURATIONS), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        (EXPRESSIVE | {"num_f0_tokens": 64, "num_style_tokens": 100, "model_in_dim": 512}, 14.82e6),
        (BASE | {"model_in_dim": 384}, 14.34e6),
    ],
)
def test_published_vocoder_sizes_fit_name_by_name(changes, parameters):
    durations = {"encoder_embed_dim": 128, "var_pred_hidden_dim": 128, "var_pred_kernel_size": 3}
    sizes = {"num_embeddings": 501, "embedding_dim": 128, "upsample_initial_channel": 512}
    settings = vocoder_settings(**sizes | changes | {"dur_predictor_params": durations})
    with torch.device("meta"):
        model = HifiGanVocoder(settings_to_hifigan_config(settings, Path("config.json")))
    published = {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): shape
        for name, shape in vocoder_shapes(settings).items()
    }
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == published
    without_norm = sum(int(np.prod(shape)) for name, shape in published.items() if not name.endswith("original0"))
    assert abs(without_norm - parameters) < 0.01e6


def test_vocoders_with_other_inputs_are_refused(tmp_path):
    for number, (changes, message) in enumerate(
        [
            ({"f0": True}, "has f0: this vocoder takes F0 itself"),
            ({"embedder_params": {"dim": 3}}, "takes speaker vectors"),
            ({"resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 2, 3]]}, "expected the same for every kernel"),
            ({"upsample_initial_channel": None}, "initial_channels"),
        ]
    ):
        settings = vocoder_settings(**BASE)
        write_vocoder(tmp_path / str(number), settings)
        (tmp_path / str(number) / "config.json").write_text(json.dumps(settings | changes))
        with pytest.raises(Exception, match=message):
            plan_other(tmp_path / str(number), ConvertOptions())
    write_vocoder(tmp_path / "names", vocoder_settings(**BASE), speakers=list("abcde"))
    with pytest.raises(ValueError, match="has 5 names for 4 embeddings"):
        plan_other(tmp_path / "names", ConvertOptions())
    (tmp_path / "names" / "second.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="must hold one file of weights .* found generator.pt, second.pt"):
        plan_other(tmp_path / "names", ConvertOptions())


def write_release(folder):
    tokenizers = folder / "speech_tokenizer"
    write_pitch(tokenizers / "vqvae_f0_quantizer")
    write_style(tokenizers / "style_encoder_w2v2")
    write_vocoder(tokenizers / "hifigan_spiritlm_base", vocoder_settings(**BASE))
    write_vocoder(tokenizers / "hifigan_spiritlm_expressive_w2v2", vocoder_settings(**EXPRESSIVE))


@pytest.mark.parametrize("part", ["", "speech_tokenizer"])
def test_a_release_is_converted_as_far_as_it_is_there(part, tmp_path, capsys):
    write_release(tmp_path / "checkpoints")
    assert main(["convert", str(tmp_path / "checkpoints" / part), str(tmp_path / "converted")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("FAIR Noncommercial Research License") == 1
    folders = {path.name for path in (tmp_path / "converted").iterdir()}
    assert folders == {"pitch_encoder", "style_encoder", "vocoder_base", "vocoder_expressive"}
    for folder in folders:
        assert json.loads((tmp_path / "converted" / folder / "convert_report.json").read_text())["complete"]
        assert (tmp_path / "converted" / folder / "model.safetensors").is_file()


def sibling(name):
    """Another test file as a module, for what it writes."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_whole_release_becomes_seven_folders(tmp_path, capsys):
    hubert, language_model = sibling("test_convert_hubert"), sibling("test_convert_language_model")
    source, destination = tmp_path / "checkpoints", tmp_path / "converted"
    write_release(source)
    hubert.write_spirit_lm_hubert(
        source / "speech_tokenizer" / "hubert_25hz", hubert.reference_hubert(True), hubert.reference_quantizer()
    )
    text_model = language_model.train_text_model(tmp_path)
    for name, tokens in (("base", language_model.BASE_TOKENS), ("expressive", language_model.EXPRESSIVE_TOKENS)):
        folder = source / "spiritlm_model" / f"spirit-lm-{name}-7b"
        language_model.write_spirit_lm(folder, text_model, tokens, vocab_size=1088)
    assert detect_format(source) == "spirit-lm"
    assert main(["convert", str(source), str(destination)]) == 0
    found = {folder.name: json.loads((folder / "config.json").read_text()) for folder in destination.iterdir()}
    assert {name: settings["auto_map"]["AutoModel"] for name, settings in found.items()} == {
        "speech_encoder": "speech_encoder_tinywave.SpeechEncoder",
        "pitch_encoder": "pitch_encoder_tinywave.PitchEncoder",
        "style_encoder": "style_encoder_tinywave.StyleEncoder",
        "vocoder_base": "hifigan_tinywave.HifiGanVocoder",
        "vocoder_expressive": "hifigan_tinywave.HifiGanVocoder",
        "spirit-lm-base-7b": "modeling_tinywave.TinyWaveModel",
        "spirit-lm-expressive-7b": "modeling_tinywave.TinyWaveModel",
    }
    assert found["spirit-lm-expressive-7b"]["num_style_tokens"] == 100
    assert capsys.readouterr().out.count(" 0 missing, 0 unexpected, 0 misshapen") == 7
    # The same command finds every shard in place.
    assert main(["convert", str(source), str(destination)]) == 0


def test_each_part_is_recognised_alone(tmp_path):
    write_release(tmp_path)
    tokenizers = tmp_path / "speech_tokenizer"
    found = {path.name: detect_format(path) for path in tokenizers.iterdir()}
    assert found == {
        "vqvae_f0_quantizer": "spirit-lm-pitch",
        "style_encoder_w2v2": "spirit-lm-style",
        "hifigan_spiritlm_base": "spirit-lm-hifigan",
        "hifigan_spiritlm_expressive_w2v2": "spirit-lm-hifigan",
    }
    assert set(found.values()) < set(FORMATS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is of no known format .it holds nothing.. Known are spirit-lm: the "):
        detect_format(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="does not exist; name the downloaded folder"):
        detect_format(tmp_path / "absent")
