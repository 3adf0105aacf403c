"""The environment of every test: offline, quiet, and without traces in the user's own caches."""

import importlib.util
import os
import signal
import tempfile
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
# Remote-code modules are cached by content; a fresh folder keeps one run's modules out of the next.
_modules_cache = tempfile.TemporaryDirectory(prefix="tinywave-modules-")
os.environ["HF_MODULES_CACHE"] = _modules_cache.name

# The same examples in every run, with no limit of time; `pytest --hypothesis-profile default` draws new ones.
hypothesis.settings.load_profile("ci")

# A shell that starts the tests in the background makes them ignore Ctrl-C, and so the processes they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def metadata():
    """setup.py as a module; its `setup()` call runs only when it is executed as a script."""
    spec = importlib.util.spec_from_file_location("tinywave_setup", Path(__file__).parents[1] / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def expressive_codec():
    """A codec of the smallest encoders of 500 units, 64 pitch tokens and five named styles, fitted to real speech."""
    # Imported here: the environment above has to be set before transformers reads it.
    import soxr
    import torch

    from tinywave.codec_tinywave import SpeechCodec
    from tinywave.configuration_tinywave import (
        PitchEncoderConfig,
        SpeechEncoderConfig,
        StyleEncoderConfig,
        VocoderConfig,
    )
    from tinywave.data.f0_extraction import load_f0_extractor
    from tinywave.data.hibari_voice import STYLES, HibariVoice
    from tinywave.pitch_encoder_tinywave import PitchEncoder, contour_to_features
    from tinywave.speech_encoder_tinywave import SpeechEncoder
    from tinywave.style_encoder_tinywave import StyleEncoder
    from tinywave.vocoder_tinywave import Vocoder

    utterance = HibariVoice().synthesize("The dog found a golden key.")
    speech = soxr.resample(utterance.waveform, utterance.sampling_rate, 16_000)
    torch.manual_seed(0)

    def spread(rows, count):
        return rows[torch.randint(len(rows), (count,))] + 0.01 * torch.randn(count, rows.shape[1])

    backbone = {"model_type": "whisper", "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2}
    backbone |= {"encoder_ffn_dim": 64, "num_mel_bins": 80}
    encoder = SpeechEncoder(SpeechEncoderConfig(backbone_config=backbone, layer=1, num_units=500)).eval()
    encoder.quantizer.centroids.copy_(spread(encoder.extract_features([speech])[0].detach(), 500))
    pitch_config = PitchEncoderConfig(hidden_size=8, code_size=4, f0_extractor="swift-f0")
    extractor, pitch_encoder = load_f0_extractor("swift-f0"), PitchEncoder(pitch_config).eval()
    latents = pitch_encoder(contour_to_features(*extractor(speech))[None]).latents
    pitch_encoder.quantizer.codebook.copy_(spread(latents.detach().flatten(0, -2), 64))
    backbone = {"model_type": "wav2vec2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    backbone |= {"intermediate_size": 32, "conv_dim": [8] * 7, "num_conv_pos_embedding_groups": 4}
    style_config = StyleEncoderConfig(backbone_config=backbone, num_styles=5, style_names=list(STYLES))
    return SpeechCodec(
        encoder,
        Vocoder(VocoderConfig(num_units=500, hidden_size=16, duration_hidden_size=16)).eval(),
        pitch_encoder=pitch_encoder,
        style_encoder=StyleEncoder(style_config).eval(),
        f0_extractor=extractor,
    )
