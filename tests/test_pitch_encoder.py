"""Pitch encoder: published sizes and arithmetic, exact batching, and what is refused."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch.nn import functional as F

from tinywave.configuration_tinywave import PitchEncoderConfig
from tinywave.pitch_encoder_tinywave import CodeQuantizer, PitchEncoder, contour_to_features

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

folder, contour = sys.argv[1:]
encoder = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
codes = encoder.f0_to_codes([tuple(np.load(contour))])[0]
f0 = encoder.codes_to_f0(codes)
print(json.dumps({"name": type(encoder).__name__, "codes": codes.tolist(), "f0": f0[::50].tolist()}))
'''


@pytest.fixture(scope="module")
def encoder():
    """The published sizes, random weights, and codes among the latents of real-looking contours."""
    torch.manual_seed(0)
    encoder = PitchEncoder(PitchEncoderConfig()).eval()
    with torch.no_grad():
        features = torch.stack([contour_to_features(*contour(640, seed)) for seed in range(8)])
        latents = encoder(features).latents.flatten(0, 1)
    encoder.quantizer.codebook.copy_(latents[torch.randperm(len(latents))[:64]])
    return encoder


def contour(num_frames, seed):
    """A falling melody with ripples, voiced three quarters of the time; F0 is unknown elsewhere."""
    random = np.random.default_rng(seed)
    frames = np.arange(num_frames)
    f0 = 220 - 0.05 * frames + 30 * np.sin(frames / random.uniform(15, 60)) + random.normal(0, 2, num_frames)
    voiced = np.sin(frames / 11 + seed) > -0.7
    return np.where(voiced, f0, 0).astype(np.float32), voiced


def test_the_published_sizes(encoder):
    assert encoder.num_parameters() + encoder.quantizer.codebook.numel() == 208_386
    assert (encoder.f0_rate, encoder.code_rate, encoder.num_codes, encoder.sampling_rate) == (200.0, 12.5, 64, 16000)


def test_the_reference_clip_has_114_codes(encoder):
    """146,160 samples are 1,828 F0 frames."""
    codes = encoder.f0_to_codes([contour(146_160 // 80 + 1, 0)])[0]
    assert len(codes) == 114
    assert len(encoder.codes_to_f0(codes)) == 16 * 114


@pytest.mark.parametrize("num_frames", [16, 17, 31, 32, 47, 333])
def test_every_whole_block_of_sixteen_frames_has_a_code(encoder, num_frames):
    assert len(encoder.f0_to_codes([contour(num_frames, 1)])[0]) == num_frames // 16


def test_codes_do_not_depend_on_the_batch(encoder):
    contours = [contour(num_frames, num_frames) for num_frames in (16, 640, 47, 333, 1828, 100, 255, 64)]
    alone = encoder.f0_to_codes(contours, batch_size=1)
    together = encoder.f0_to_codes(contours, batch_size=8)
    assert [item.tolist() for item in together] == [item.tolist() for item in alone]
    assert torch.cat(alone).unique().numel() > 10


def test_a_padded_batch_decodes_as_each_row_alone(encoder):
    rows = [contour_to_features(*contour(num_frames, num_frames)) for num_frames in (333, 64, 200)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=77.0)
    with torch.no_grad():
        output = encoder(padded, torch.tensor([333, 64, 200]))
        alone = [encoder(row[None]) for row in rows]
    assert output.lengths.tolist() == [20, 4, 12]
    for index, item in enumerate(alone):
        count = int(item.lengths)
        assert output.codes[index, :count].tolist() == item.codes[0].tolist()
        assert (output.codes[index, count:] == -1).all()
        torch.testing.assert_close(
            output.reconstruction[index, : 16 * count], item.reconstruction[0], rtol=0, atol=1e-5
        )
        assert (output.reconstruction[index, 16 * count :] == 0).all()


def published_names(state):
    """Rename a state dict by the table in the docstring of the model."""
    table = re.findall(r"\| `(.*level_blocks.*|decoder\.out)` \| `(.*)` \|", PitchEncoder.__doc__)
    assert len(table) == 10
    renamed = {}
    for name, tensor in state.items():
        if name == "quantizer.code_counts":
            continue
        module, kind = (name, "") if name == "quantizer.codebook" else re.fullmatch(r"(.*)(\.\w+)", name).groups()
        matches = []
        for published, ours in table:
            pattern = re.escape(ours).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{j\}", r"(?P<j>\d+)")
            if match := re.fullmatch(pattern, module):
                values = {key: int(value) for key, value in match.groupdict().items()}
                filled = published.replace("{num_stages}", "4").replace("{i + 1}", str(values.get("i", 0) + 1))
                matches.append(filled.format(**values))
        assert len(matches) == 1, name
        renamed[matches[0] + kind] = tensor
    return renamed


def jukebox_forward(state, features):
    """The published network on `(1, 2, T)`, written down from its layer list: latents and decoded codes."""

    def convolve(name, hidden, function=F.conv1d, **options):
        return function(hidden, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    def refine(name, hidden):
        for depth in range(4):
            update = convolve(f"{name}.model.{depth}.model.1", hidden.relu(), padding=3**depth, dilation=3**depth)
            hidden = hidden + convolve(f"{name}.model.{depth}.model.3", update.relu())
        return hidden

    root = "encoder.level_blocks.0.model"
    for stage in range(4):
        features = convolve(f"{root}.{stage}.0", features, stride=2, padding=1)
        features = refine(f"{root}.{stage}.1", features)
    latents = convolve(f"{root}.4", features, padding=1)
    distances = (latents[0].T[:, None] - state["vq.level_blocks.0.k"]).square().sum(-1)
    codes = distances.argmin(-1)
    root = "decoder.level_blocks.0.model"
    hidden = convolve(f"{root}.0", state["vq.level_blocks.0.k"][codes].T[None], padding=1)
    for stage in range(1, 5):
        hidden = refine(f"{root}.{stage}.0", hidden)
        hidden = convolve(f"{root}.{stage}.1", hidden, F.conv_transpose1d, stride=2, padding=1)
    return latents, codes, convolve("decoder.out", hidden, padding=1)


def test_the_network_is_the_published_one_under_other_names(encoder):
    features = contour_to_features(*contour(337, 5))
    with torch.no_grad():
        output = encoder(features[None])
        latents, codes, decoded = jukebox_forward(published_names(encoder.state_dict()), features.T[None])
    torch.testing.assert_close(output.latents[0].T, latents[0])
    assert output.codes[0].tolist() == codes.tolist()
    torch.testing.assert_close(output.reconstruction[0].T, decoded[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(encoder.codes_to_f0(codes), decoded[0, 0], rtol=1e-4, atol=1e-6)


def test_the_nearest_code_is_chosen():
    torch.manual_seed(1)
    quantizer = CodeQuantizer(20, 8)
    quantizer.codebook.normal_()
    latents = torch.randn(3, 50, 8)
    expected = torch.cdist(latents.double(), quantizer.codebook.double()).argmin(-1)
    assert torch.equal(quantizer(latents), expected) and expected.unique().numel() > 10


def test_the_gradient_passes_the_quantizer(encoder):
    features = contour_to_features(*contour(64, 2))[None]
    output = encoder(features)
    (gradient,) = torch.autograd.grad(output.reconstruction.square().sum(), output.latents)
    assert (gradient != 0).any()
    assert not output.quantized.requires_grad


def test_relative_f0_by_hand():
    """Interpolated inside, held outside, and 210 Hz, the mean of the voiced frames, removed."""
    features = contour_to_features([0, 0, 200, 0, 220, 0], [0, 0, 1, 0, 1, 0])
    assert features.tolist() == [[-10, 0], [-10, 0], [-10, 1], [0, 0], [10, 1], [10, 0]]
    interpolated = contour_to_features([200, 200, 200, 207, 220, 220], [0, 0, 1, 0, 1, 0])
    assert interpolated[3].tolist() == [-3, 0]  # an F0 that an extractor gave to an unvoiced frame is kept
    low, high = (contour_to_features([mean - 1, 0, mean + 1], [1, 0, 1]) for mean in (100, 300))
    assert low.tolist() == high.tolist() == [[-1, 1], [0, 0], [1, 1]]


def test_whisper_and_silence_are_level_and_have_codes(encoder):
    features = contour_to_features(np.zeros(320), np.zeros(320, bool))
    assert features.shape == (320, 2) and not features.any()
    codes = encoder.f0_to_codes([(np.zeros(320), np.zeros(320, bool))])[0]
    assert len(codes) == 20 and len(codes[5:-5].unique()) == 1


@pytest.mark.parametrize(
    ("f0", "voiced", "reason"),
    [
        (np.zeros(20), np.zeros(19), r"shape \(20,\) and voiced \(19,\)"),
        (np.full((2, 20), 100.0), np.ones((2, 20)), r"expected \(frames,\) for both"),
        (np.full(20, np.nan), np.ones(20), "NaN, infinite or negative"),
        (np.full(20, -1.0), np.ones(20), "NaN, infinite or negative"),
        (np.r_[np.zeros(3), np.full(17, 100.0)], np.ones(20), "3 voiced frames have F0 0"),
        (np.full(15, 100.0), np.ones(15), r"contour 0 has 15 F0 frames \(75 ms\); a pitch token needs 16 \(80 ms\)"),
    ],
)
def test_bad_contours_are_refused(encoder, f0, voiced, reason):
    with pytest.raises(ValueError, match=reason):
        encoder.f0_to_codes([(f0, voiced)])


def test_bad_codes_are_refused(encoder):
    assert encoder.codes_to_f0([]).shape == (0,)
    with pytest.raises(ValueError, match=r"codes are -1\.\.3; expected 0\.\.63"):
        encoder.codes_to_f0([3, -1])
    with pytest.raises(ValueError, match="expected 0..63"):
        encoder.codes_to_f0([64])
    with pytest.raises(ValueError, match=r"shape \(1, 2\); expected one utterance"):
        encoder.codes_to_f0(torch.zeros(1, 2))


def test_an_encoder_without_codebook_is_refused():
    encoder = PitchEncoder(PitchEncoderConfig(hidden_size=4, code_size=4))
    with pytest.raises(ValueError, match="no codebook"):
        encoder.f0_to_codes([contour(32, 0)])
    with pytest.raises(ValueError, match="no codebook"):
        encoder.codes_to_f0([0])


def test_impossible_sizes_are_refused():
    with pytest.raises(StrictDataclassClassValidationError, match="num_stages is 0; it must be positive"):
        PitchEncoderConfig(num_stages=0)


def test_a_saved_folder_loads_where_tinywave_is_not_importable(encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "model")
    np.save(tmp_path / "contour.npy", np.stack(contour(400, 3)))
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    command = [sys.executable, "-c", STRANGER, str(tmp_path / "model"), str(tmp_path / "contour.npy")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    codes = encoder.f0_to_codes([contour(400, 3)])[0]
    expected = {"name": "PitchEncoder", "codes": codes.tolist(), "f0": encoder.codes_to_f0(codes)[::50].tolist()}
    assert json.loads(done.stdout.splitlines()[-1]) == expected
    again = PitchEncoder.from_pretrained(tmp_path / "model")
    assert {name: tensor.tolist() for name, tensor in again.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in encoder.state_dict().items()
    }
    assert again.config.to_dict()["auto_map"]["AutoModel"] == "pitch_encoder_tinywave.PitchEncoder"
