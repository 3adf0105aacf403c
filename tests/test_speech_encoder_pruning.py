"""A small Whisper speech encoder begins as the large one it is cut from, as nearly as its width allows."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tinywave.configuration_tinywave import SpeechEncoderConfig
from tinywave.data.audio_io import load_audio
from tinywave.speech_encoder_tinywave import SpeechEncoder
from tinywave.training.speech_encoder_pruning import prune_speech_encoder

LIBRIVOX = Path(__file__).parents[1] / "assets" / "audio" / "librivox"
NUM_UNITS = 20
TEACHER = {
    "model_type": "whisper", "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64,
    "num_mel_bins": 40, "max_source_positions": 1500,
}  # fmt: skip


@pytest.fixture(scope="module")
def waveforms():
    return [torch.as_tensor(load_audio(path)) for path in sorted(LIBRIVOX.glob("*.flac"))]


@pytest.fixture(scope="module")
def teacher(waveforms):
    """A tiny Whisper of random weights, large enough in its feed-forward layers to miss them."""
    torch.manual_seed(0)
    encoder = SpeechEncoder(SpeechEncoderConfig(backbone_config=TEACHER, layer=2, num_units=NUM_UNITS)).eval()
    with torch.no_grad():
        for layer in encoder.backbone.layers:
            layer.fc1.weight.normal_(0, 0.4)
            layer.fc2.weight.normal_(0, 0.4)
    features = torch.cat(encoder.extract_features(waveforms))
    encoder.quantizer.mean, encoder.quantizer.standard_deviation = features.mean(0), features.std(0)
    encoder.quantizer.centroids = encoder.quantizer.normalize(features[torch.randperm(len(features))[:NUM_UNITS]])
    return encoder


def student_config(backbone=(), **changes):
    settings = {"layer": 2, "num_units": NUM_UNITS, "quantizer": "linear"} | changes
    return SpeechEncoderConfig(backbone_config=TEACHER | dict(backbone), **settings)


def normalised_error(student, teacher, waveforms):
    normalize = teacher.quantizer.normalize
    pairs = zip(student.extract_features(waveforms), teacher.extract_features(waveforms), strict=True)
    return torch.cat([(normalize(own) - normalize(its)).square().mean(1) for own, its in pairs]).mean().item()


def test_without_cutting_features_and_units_are_the_teachers(teacher, waveforms):
    student = prune_speech_encoder(teacher, student_config(), waveforms).eval()
    assert normalised_error(student, teacher, waveforms) < 1e-5
    units = torch.cat(teacher.encode(waveforms))
    assert len(units.unique()) > NUM_UNITS / 2
    assert (torch.cat(student.encode(waveforms)) == units).float().mean() > 0.99


def test_the_linear_layer_names_the_nearest_centroid_and_never_the_blank(teacher, waveforms):
    student = prune_speech_encoder(teacher, student_config(), waveforms)
    features = torch.cat(teacher.extract_features(waveforms))
    features = features + features.std(0) * torch.randn(features.shape, generator=torch.manual_seed(0))
    assert torch.equal(student.quantizer(features), teacher.quantizer(features))


def test_units_that_do_nothing_are_the_first_to_go(teacher, waveforms):
    idle = SpeechEncoder(teacher.config).eval()
    idle.load_state_dict(teacher.state_dict())
    chosen = torch.randperm(64, generator=torch.manual_seed(1))[:40]
    with torch.no_grad():
        for layer in idle.backbone.layers:
            layer.fc2.weight[:, chosen] = 0
    student = prune_speech_encoder(idle, student_config({"encoder_ffn_dim": 24}), waveforms).eval()
    assert normalised_error(student, idle, waveforms) < 1e-4
    kept = torch.tensor([index for index in range(64) if index not in chosen.tolist()])
    assert torch.equal(student.backbone.layers[0].fc1.weight, idle.backbone.layers[0].fc1.weight[kept])


def test_what_is_kept_is_fitted_to_what_all_made(teacher, waveforms):
    """The second linear layer solves a least-squares problem, and is better than the teacher's own columns."""
    student = prune_speech_encoder(teacher, student_config({"encoder_ffn_dim": 32}), waveforms).eval()
    inputs, outputs = [], []
    layer = teacher.backbone.layers[0].fc2

    def watch(module, args, output):
        inputs.append(args[0][0])
        outputs.append(output[0])

    handle = layer.register_forward_hook(watch)
    teacher.extract_features(waveforms)
    handle.remove()
    rows = teacher.backbone.layers[0].fc1.weight
    kept = [int((rows == row).all(1).nonzero()) for row in student.backbone.layers[0].fc1.weight]
    units, wanted = torch.cat(inputs)[:, kept].detach().double().numpy(), torch.cat(outputs).detach().double().numpy()
    units = np.concatenate([units, np.ones((len(units), 1))], axis=1)
    best = np.linalg.lstsq(units, wanted, rcond=None)[0]
    fitted = student.backbone.layers[0].fc2
    found = torch.cat([fitted.weight, fitted.bias[:, None]], dim=1).detach().double().numpy().T
    cut = torch.cat([layer.weight[:, kept], layer.bias[:, None]], dim=1).detach().double().numpy().T

    def error(weights):
        return np.square(units @ weights - wanted).mean()

    assert error(best) <= error(found) < 1.01 * error(best)
    assert error(found) < 0.7 * error(cut)


def test_a_wider_student_is_nearer_to_its_teacher(teacher, waveforms):
    errors = [
        normalised_error(
            prune_speech_encoder(teacher, student_config({"encoder_ffn_dim": width}), waveforms), teacher, waveforms
        )
        for width in (16, 32, 48, 64)
    ]
    assert errors == sorted(errors, reverse=True)


def test_fewer_positions_and_blocks_leave_the_weights_alone(teacher, waveforms):
    config = student_config({"max_source_positions": 60}, block_units=20, block_context=5)
    student = prune_speech_encoder(teacher, config, waveforms).eval()
    block = waveforms[0][: 640 * 25]
    assert torch.allclose(
        student.extract_features([block])[0][:20], teacher.extract_features([block])[0][:20], atol=0.02
    )


@pytest.mark.parametrize(
    ("backbone", "changes", "message"),
    [
        ({"d_model": 16}, {}, "d_model is 16, but the teacher's is 32"),
        ({"encoder_attention_heads": 4}, {}, "encoder_attention_heads is 4, but the teacher's is 2"),
        ({"encoder_ffn_dim": 65}, {}, "encoder_ffn_dim is 65, more than the teacher's 64"),
        ({}, {"layer": 1}, "layer is 1, but the teacher's is 2"),
        ({}, {"num_units": 7}, "num_units is 7, but the teacher's is 20"),
        ({}, {"quantizer": "centroids"}, "a student with a linear quantizer"),
        ({}, {"quantizer_hidden_sizes": [8]}, "leave them out"),
        ({}, {"weight_bits": 8}, "round it after training"),
    ],
)
def test_a_student_that_cannot_be_cut_from_the_teacher_is_refused(teacher, waveforms, backbone, changes, message):
    with pytest.raises(ValueError, match=message):
        prune_speech_encoder(teacher, student_config(backbone, **changes), waveforms)


def test_without_speech_nothing_can_be_ranked(teacher):
    with pytest.raises(ValueError, match="found no speech to rank"):
        prune_speech_encoder(teacher, student_config(), [])
