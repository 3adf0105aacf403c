"""A voice through the units and back: what a model hears of it."""

import gradio as gr
import numpy as np

from .continuation_tab import prompt_units
from .page import ONE_AT_A_TIME, example_buttons, recording_input, shows_errors, variant_input, waveform_to_player
from .pictures import speech_picture
from .recordings import load_recording
from .studio import Studio
from .zero_gpu import on_gpu

EXPLANATION = (
    "Speech becomes units, 25 a second, each the number of a short sound; a vocoder, which knows one voice, reads "
    "them aloud. What you do not hear any more, the model has never heard either."
)


def build_codec_tab(studio: Studio, examples: dict[str, np.ndarray]) -> None:
    gr.Markdown(EXPLANATION)
    with gr.Row(equal_height=False):
        with gr.Column(min_width=280):
            recording = recording_input()
            example_buttons(examples, recording)
            variant = variant_input(studio)
            start = gr.Button("Through the units", variant="primary", elem_id="encode")
        with gr.Column(min_width=280):
            status = gr.Markdown("")
            spoken = gr.Audio(interactive=False, label="You, in units", elem_id="spoken", buttons=["download"])
            picture = gr.Image(
                interactive=False, label="What the model hears", show_label=False, buttons=["fullscreen"]
            )
            with gr.Accordion("Tokens", open=False):
                record = gr.JSON(show_label=False, max_height=320)

    @on_gpu
    @shows_errors
    def encode(recording, variant):
        return encoded(studio, recording, variant)

    start.click(
        encode,
        [recording, variant],
        [spoken, picture, record, status],
        api_name="encode",
        api_description="Speech to units and back: the resynthesis, a picture, and units, pitch, style and tokens.",
        show_progress_on=[status],
        **ONE_AT_A_TIME,
    )


def encoded(studio: Studio, recording: str | None, variant: str) -> tuple:
    """Resynthesis, picture, JSON record and status of a recording."""
    clip = load_recording(recording, keep="start")
    streams, record, waveform = studio.encode(clip.waveform, variant)
    rate = studio.pipeline(variant).codec.output_sampling_rate
    picture = speech_picture(waveform, rate, prompt_units(studio, variant, streams), style_names=studio.styles)
    facts = f"{record['seconds']:.1f} s became {len(record['tokens'])} tokens."
    return waveform_to_player(waveform, rate), picture, record, f"{clip.notice} {facts}".strip()
