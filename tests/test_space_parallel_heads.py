"""The Space and a model with parallel heads: offered where there are any, streamed, and the same answer if verified.

The heads are untaught: their drafts are hardly ever right, so what is verified and what is not differ for certain.
"""

from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file

from tinywave.cli.loading import load_for_training, load_language_model
from tinywave.cli.shipped import TEACHER
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.processing_tinywave import TinyWaveProcessor
from tinywave.spaces.continuation_tab import build_continuation_tab
from tinywave.spaces.interface import build_interface, launch
from tinywave.spaces.recordings import load_recording
from tinywave.spaces.studio import OFF, UNVERIFIED, VERIFIED, Answer, Sampling, Studio
from tinywave.training.layer_map import LayerMap
from tinywave.training.student_init import student_from_teacher

CLIP = Path(__file__).resolve().parents[1] / "assets" / "audio" / "librivox" / "sense_and_sensibility_01_0880.flac"
NUM_HEADS, NUM_NEW, SECONDS = 3, 27, 1.5
CONTROL = "Several tokens for each forward pass"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """A student of three layers of the shipped teacher, on units alone, with heads and without."""
    teacher, _ = load_for_training(TEACHER, ["unit"])
    model = student_from_teacher(teacher, LayerMap.every_third_ending_last(teacher.config.num_hidden_layers, 3))
    processor = TinyWaveProcessor.from_config(model.config, load_language_model(TEACHER)[1].tokenizer)
    without, with_heads = (tmp_path_factory.mktemp(name) for name in ("without", "with_heads"))
    model.save_pretrained(without)
    torch.manual_seed(0)
    TinyWaveForCausalLM.from_pretrained(without, num_parallel_heads=NUM_HEADS).save_pretrained(with_heads)
    for folder in (without, with_heads):
        processor.save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))  # away from what a quickstart may have left
        yield {"without": str(without), "with_heads": str(with_heads)}


@pytest.fixture(scope="module")
def studio(folders) -> Studio:
    return Studio(folders["with_heads"])


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return load_recording(CLIP).waveform


def say(studio: Studio, clip: np.ndarray, parallel_heads: str, **sampling) -> tuple[list, Answer, list[int]]:
    """Pieces, answer, and how many tokens each forward pass after the prompt has read."""
    read = []
    hook = studio.pipeline("plain").model.model.register_forward_pre_hook(
        lambda _, __, named: read.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    with hook:
        settings = Sampling(seconds=SECONDS, parallel_heads=parallel_heads, **sampling)
        *pieces, answer = studio.continue_speech(clip, "plain", settings)
    return pieces, answer, read[1:]


def test_greedy_verified_drafts_say_what_ordinary_decoding_says(studio, clip):
    _, expected, read = say(studio, clip, OFF, temperature=0)
    assert set(read) == {1}
    pieces, answer, read = say(studio, clip, VERIFIED, temperature=0)
    assert max(read) == 1 + NUM_HEADS
    assert answer.tokens == expected.tokens
    np.testing.assert_array_equal(answer.waveform, expected.waveform)
    np.testing.assert_array_equal(np.concatenate([piece.waveform.numpy() for piece in pieces]), answer.waveform)
    assert len(pieces) > 1


def test_unverified_drafts_are_all_kept(studio, clip):
    _, verified, _ = say(studio, clip, VERIFIED)
    _, answer, read = say(studio, clip, UNVERIFIED)
    assert len(answer.segments[0].streams) == NUM_NEW
    assert len(read) == -(-(NUM_NEW - 1) // (1 + NUM_HEADS))
    assert answer.tokens != verified.tokens


def test_a_model_without_heads_and_an_unknown_way_are_refused(folders, clip):
    with pytest.raises(ValueError, match="without parallel heads; train some with `tinywave train-heads`"):
        say(Studio(folders["without"]), clip, VERIFIED)
    with pytest.raises(ValueError, match="Found parallel_heads 'fast'; expected one of off, verified, unverified"):
        Sampling(parallel_heads="fast")


def continuation_inputs(studio: Studio) -> list[str]:
    """Labels of what the button of the continuation tab sends."""
    with gr.Blocks() as blocks:
        build_continuation_tab(studio, {})
    (handler,) = (function for function in blocks.fns.values() if function.api_name == "continue_speech")
    return [component.label for component in handler.inputs]


def test_the_choice_is_offered_where_there_are_heads(studio, folders):
    shipped, without = Studio(), Studio(folders["without"])
    assert (shipped.has_parallel_heads, without.has_parallel_heads, studio.has_parallel_heads) == (False, False, True)
    assert continuation_inputs(shipped) == continuation_inputs(without)
    assert continuation_inputs(studio) == [*continuation_inputs(without), CONTROL]


def test_programs_may_choose_or_call_as_before(studio, clip):
    blocks = build_interface(studio)
    try:
        client = Client(launch(blocks, wait=False).rstrip("/"), verbose=False)
        request = {"recording": handle_file(str(CLIP)), "seconds": SECONDS, "api_name": "/continue_speech"}
        for chosen, used in (({}, OFF), ({"parallel_heads": UNVERIFIED}, UNVERIFIED)):
            *_, tokens = client.predict(**request, **chosen)
            assert tokens == say(studio, clip, used)[1].tokens
        with pytest.raises(Exception, match="not in the list of choices"):
            client.predict(**request, parallel_heads="fast")
    finally:
        blocks.close()
