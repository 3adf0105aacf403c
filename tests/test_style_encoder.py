"""Style encoder: equal to the classifier of transformers, exact in batches and chunks, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

from tinywave import style_encoder_tinywave
from tinywave.configuration_tinywave import StyleEncoderConfig
from tinywave.data.audio_io import load_audio
from tinywave.style_encoder_tinywave import StyleEncoder

AUDIO = Path(__file__).resolve().parent.parent / "assets" / "audio" / "librivox"
TINY = {
    "model_type": "wav2vec2",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
STRANGER = '''
import json, sys

class Hidden:
    """Make every import of the package fail."""
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tinywave":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Hidden())
import numpy as np
from transformers import AutoModel

folder, clip = sys.argv[1:]
encoder = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
styles = encoder.encode([np.load(clip)])[0].tolist()
print(json.dumps({"name": type(encoder).__name__, "styles": styles, "names": encoder.config.style_names}))
'''


def tiny_encoder(seed=0, backbone=None, **options):
    torch.manual_seed(seed)
    settings = {"num_styles": 7, "projector_size": 12} | options
    encoder = StyleEncoder(StyleEncoderConfig(backbone_config=TINY | (backbone or {}), **settings)).eval()
    for parameter in encoder.parameters():  # biases and gains of a trained model are not 0 and 1
        parameter.data += 0.1 * torch.randn_like(parameter)
    return encoder


@pytest.fixture(scope="module")
def encoder():
    return tiny_encoder()


@pytest.fixture(scope="module")
def clips():
    return [load_audio(path) for path in sorted(AUDIO.glob("*.flac"))]


def logits_of(encoder, waveforms):
    rows = [torch.as_tensor(waveform) for waveform in waveforms]
    masks = [torch.ones(len(row), dtype=torch.long) for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    with torch.no_grad():
        return encoder(pad(rows, batch_first=True, padding_value=0.3), pad(masks, batch_first=True))


def test_the_reference_clip_has_ten_styles(encoder):
    """146,160 samples are 456 frames: nine windows of 50 and one of 6."""
    assert len(encoder.encode([np.random.default_rng(0).normal(size=146_160).astype(np.float32)])[0]) == 10
    assert (encoder.style_rate, encoder.samples_per_style, encoder.sampling_rate) == (1.0, 16000, 16000)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_windows_are_those_of_the_published_classifier(clips, weighted, norm):
    """The classifier of transformers, cut into windows between its projector and its classifier."""
    encoder = tiny_encoder(backbone={"feat_extract_norm": norm}, use_weighted_layer_sum=weighted)
    config = Wav2Vec2Config(**TINY | {"feat_extract_norm": norm, "classifier_proj_size": 12, "num_labels": 7})
    config.use_weighted_layer_sum = weighted
    published = Wav2Vec2ForSequenceClassification(config).eval()
    state = {name.replace("backbone.", "wav2vec2."): tensor for name, tensor in encoder.state_dict().items()}
    published.load_state_dict(state)
    waveform = torch.from_numpy(clips[1])
    normal = (waveform - waveform.mean()) / (waveform.var(correction=0) + 1e-7).sqrt()
    with torch.no_grad():
        outputs = published.wav2vec2(normal[None], output_hidden_states=True)
        hidden = outputs.last_hidden_state
        if weighted:
            weights = published.layer_weights.softmax(0)[:, None, None, None]
            hidden = (torch.stack(outputs.hidden_states) * weights).sum(0)
        projected = published.projector(hidden)[0]
        starts = range(0, len(projected), 50)
        expected = [published.classifier(projected[start : start + 50].mean(0)) for start in starts]
        whole = published(normal[None]).logits
    logits = logits_of(encoder, [clips[1]]).logits[0]
    torch.testing.assert_close(logits, torch.stack(expected), rtol=1e-4, atol=1e-5)
    encoder.config.window_frames = len(projected)
    torch.testing.assert_close(logits_of(encoder, [clips[1]]).logits[0], whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_styles_do_not_depend_on_the_batch(clips, norm):
    encoder = tiny_encoder(backbone={"feat_extract_norm": norm})
    waveforms = [*clips, clips[0][:1280], clips[1][:20_000], clips[2][:33_333]]
    encoder.classifier.bias.data -= logits_of(encoder, clips[:1]).logits.mean((0, 1))  # or one style wins everywhere
    together = logits_of(encoder, waveforms)
    alone = [logits_of(encoder, [waveform]) for waveform in waveforms]
    assert together.lengths.tolist() == [int(item.lengths) for item in alone]
    for index, item in enumerate(alone):
        count = int(item.lengths)
        torch.testing.assert_close(together.logits[index, :count], item.logits[0], rtol=0, atol=1e-5)
        assert (together.styles[index, count:] == -1).all() and (together.logits[index, count:] == 0).all()
    encoded = encoder.encode(waveforms, batch_size=8)
    assert [item.tolist() for item in encoded] == [item.styles[0].tolist() for item in alone]
    assert [item.tolist() for item in encoder.encode(waveforms)] == [item.tolist() for item in encoded]
    assert torch.cat(encoded).unique().numel() > 1


def test_level_is_no_style(encoder, clips):
    loud, quiet = encoder.encode([clips[0], 0.01 * clips[0] + 0.1])
    assert loud.tolist() == quiet.tolist()
    with_level = tiny_encoder(normalize_level=False)
    difference = logits_of(with_level, [clips[0]]).logits - logits_of(with_level, [0.01 * clips[0]]).logits
    assert difference.abs().max() > 1e-3


def test_silence_has_one_style(encoder):
    assert len(encoder.encode([np.zeros(80_000, np.float32)])[0].unique()) == 1


@pytest.mark.parametrize("strides", [None, {"conv_stride": [10, 4, 4, 2], "conv_kernel": [20, 8, 4, 4]}])
def test_chunks_together_have_the_frames_of_the_whole(clips, monkeypatch, strides):
    """A norm of each frame knows of no cut, so the frames are equal bit by bit, and the windows are as many."""
    backbone = {"feat_extract_norm": "layer"} | (strides and {**strides, "conv_dim": [8] * 4} or {})
    encoder = tiny_encoder(backbone=backbone)
    frames = encoder.backbone.feature_extractor
    for seconds, chunk_seconds in ((7.0, 2.0), (6.0, 3.0), (6.05, 3.0), (6.1, 4.0)):
        waveform = torch.from_numpy(np.tile(clips[0], 2)[: round(16000 * seconds)])
        monkeypatch.setattr(style_encoder_tinywave, "MAX_CHUNK_SECONDS", chunk_seconds)
        chunks = encoder._split_into_chunks(waveform)
        with torch.no_grad():
            whole = frames([waveform])[0]
            pieces = torch.cat([frames([chunk])[0] for chunk in chunks], dim=-1)
        torch.testing.assert_close(pieces, whole)
        num_windows = -(-whole.shape[-1] // 50)
        assert len(encoder.encode([waveform])[0]) == num_windows
        assert len(chunks) == -(-num_windows // int(chunk_seconds)) > 1


def test_training_changes_every_weight():
    encoder = tiny_encoder(backbone={"mask_time_prob": 0.0}, use_weighted_layer_sum=True).train()
    encoder(torch.randn(2, 20_000)).logits.square().sum().backward()
    still = {name for name, parameter in encoder.named_parameters() if parameter.grad is None}
    assert still == set()


@pytest.mark.parametrize(
    ("waveform", "reason"),
    [
        (np.zeros(800, np.float32), "lasts 50 ms; .* at least 80 ms"),
        (np.full(16000, np.inf, np.float32), "NaN or infinite"),
        (np.zeros((2, 16000), np.float32), r"shape \(2, 16000\); expected mono"),
    ],
)
def test_bad_waveforms_are_refused_by_number(encoder, waveform, reason):
    with pytest.raises(ValueError, match=f"waveform 1 .*{reason}"):
        encoder.encode([np.zeros(16000, np.float32), waveform])


def test_padding_on_the_left_is_refused(encoder):
    mask = torch.ones(1, 16000)
    mask[:, :100] = 0
    with pytest.raises(ValueError, match="pad the waveforms on the right"):
        encoder(torch.zeros(1, 16000), mask)


@pytest.mark.parametrize(
    ("backbone", "reason"), [({"model_type": "whisper"}, "'whisper'"), ({"add_adapter": True}, "expected no adapter")]
)
def test_other_backbones_are_refused(backbone, reason):
    with pytest.raises(ValueError, match=reason):
        tiny_encoder(backbone=backbone)


def test_impossible_configurations_are_refused():
    with pytest.raises(StrictDataclassClassValidationError, match="expected None or 2 different names"):
        StyleEncoderConfig(num_styles=2, style_names=["sad", "sad"])
    with pytest.raises(StrictDataclassClassValidationError, match="window_frames is 0; it must be positive"):
        StyleEncoderConfig(window_frames=0)


def test_a_saved_folder_loads_where_tinywave_is_not_importable(clips, tmp_path):
    names = ["calm", "sad", "glad"]
    encoder = tiny_encoder(num_styles=3, style_names=names, use_weighted_layer_sum=True)
    encoder.save_pretrained(tmp_path / "model")
    np.save(tmp_path / "clip.npy", clips[1])
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    command = [sys.executable, "-c", STRANGER, str(tmp_path / "model"), str(tmp_path / "clip.npy")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = {"name": "StyleEncoder", "styles": encoder.encode([clips[1]])[0].tolist(), "names": names}
    assert json.loads(done.stdout.splitlines()[-1]) == expected
    again = StyleEncoder.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(logits_of(again, clips).logits, logits_of(encoder, clips).logits)
