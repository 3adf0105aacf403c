"""Weights, temperatures and ids by the stream of the target, looked up for every kind of id."""

import pytest
import torch
from transformers import LlamaConfig

from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.training.stream_weighting import StreamWeighting


@pytest.fixture(scope="module")
def config():
    """Text 4-509, markers 510 and 511, units 512-1011, pitch 1012-1075, style 1076-1080, filler to 1087."""
    return TinyWaveConfig.from_preset("nano-expressive-teacher")


TARGETS = torch.tensor([[-100, 1, 4, 509], [510, 512, 1011, 1012], [1075, 1076, 1080, 1081]])


def test_without_settings_every_target_is_alike(config):
    streams = StreamWeighting(config, temperature=1.5)
    assert streams.token_weights(TARGETS) is None
    assert streams.temperatures(TARGETS) == 1.5
    assert streams.allowed_ids(TARGETS) is None


def test_targets_take_what_their_stream_has(config):
    streams = StreamWeighting(config, weights={"unit": 0.5, "style": 3.0}, temperatures={"text": 4.0, "pitch": 1.0},
                              temperature=2.0, restrict=True)  # fmt: skip
    assert streams.token_weights(TARGETS).tolist() == [[1, 1, 1, 1], [1, 0.5, 0.5, 1], [1, 3, 3, 1]]
    assert streams.temperatures(TARGETS).tolist() == [[2, 2, 4, 4], [2, 2, 2, 1], [1, 2, 2, 2]]
    first, stop = streams.allowed_ids(TARGETS)
    assert first.tolist() == [[0, 0, 4, 4], [0, 512, 512, 1012], [1012, 1076, 1076, 0]]
    assert stop.tolist() == [[1088, 1088, 510, 510], [1088, 1012, 1012, 1076], [1076, 1081, 1081, 1088]]


def test_streams_a_model_does_not_have_are_refused(config):
    with pytest.raises(ValueError, match=r"no streams \['phonetic'\]; its streams are \['pitch', 'style', 'text', 'u"):
        StreamWeighting(config, weights={"phonetic": 1.0})
    with pytest.raises(ValueError, match="LlamaConfig names no streams"):
        StreamWeighting(LlamaConfig(), restrict=True)
