"""Speech in, and what the model says next, heard while it is still thinking."""

from collections.abc import Iterator

import gradio as gr
import numpy as np
import soxr

from ..tokenization_tinywave import SpeechStreams, deduplicate
from .page import (
    INTERNAL,
    ONE_AT_A_TIME,
    answer_facts,
    example_buttons,
    parallel_heads_inputs,
    recording_input,
    sampling_from,
    sampling_inputs,
    shows_errors,
    style_input,
    variant_input,
    waveform_to_player,
    waveform_to_wav,
)
from .pictures import TimedUnit, speech_picture, time_units
from .recordings import SAMPLING_RATE, load_recording
from .studio import OFF, Answer, Sampling, Studio
from .zero_gpu import on_gpu


def build_continuation_tab(studio: Studio, examples: dict[str, np.ndarray]) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(min_width=280):
            recording = recording_input()
            example_buttons(examples, recording)
            variant = variant_input(studio)
            with gr.Row():
                speak = gr.Button("Continue", variant="primary", min_width=120, elem_id="continue")
                stop = gr.Button("Stop", variant="stop", min_width=80, elem_id="stop")
            with gr.Accordion("Settings", open=False):
                settings = [style_input(studio, variant), *sampling_inputs(), *parallel_heads_inputs(studio)]
        with gr.Column(min_width=280):
            status = gr.Markdown("Press *Continue* and listen.", elem_id="status")
            live = gr.Audio(
                streaming=True, autoplay=True, interactive=False, label="As it is spoken", elem_id="live", buttons=[]
            )
            whole = gr.Audio(
                interactive=False, label="Your voice, then the model's", elem_id="whole", buttons=["download"]
            )
            picture = gr.Image(
                interactive=False, label="What you hear", show_label=False, buttons=["fullscreen"], elem_id="picture"
            )
            with gr.Accordion("Tokens", open=False):
                tokens = gr.Textbox(show_label=False, lines=4, max_lines=12, interactive=False)

    @on_gpu
    @shows_errors
    def continue_speech(
        recording, variant, style, seconds, temperature, top_p, seed, match_loudness, parallel_heads=OFF
    ):
        sampling = sampling_from(seconds, temperature, top_p, seed, match_loudness, style, parallel_heads)
        yield from continuation_events(studio, recording, variant, sampling)

    event = speak.click(
        continue_speech,
        [recording, variant, *settings],
        [live, whole, picture, status, tokens],
        api_name="continue_speech",
        api_description="Continue a recording: the live stream, prompt and continuation as a file, a picture, facts, "
        "and tokens.",
        show_progress_on=[status],
        **ONE_AT_A_TIME,
    )
    stop.click(lambda: "Stopped.", None, status, cancels=[event], **INTERNAL)


def continuation_events(studio: Studio, recording: str | None, variant: str, sampling: Sampling) -> Iterator[tuple]:
    """(live piece, whole sound, picture, status, tokens) as they come.

    What does not change is skipped; a live piece of None adds nothing to the stream.
    """
    clip, skip = load_recording(recording), gr.skip()
    yield skip, None, None, f"{clip.notice} Listening ...".strip(), ""
    for event in studio.continue_speech(clip.waveform, variant, sampling):
        if isinstance(event, Answer):
            yield None, *finished(studio, variant, clip.waveform, event, clip.notice)
        else:
            piece = waveform_to_wav(event.waveform.cpu().numpy(), event.sampling_rate)
            yield piece, skip, skip, f"{clip.notice} Speaking: {event.end:.1f} s so far.".strip(), skip


def finished(studio: Studio, variant: str, recorded: np.ndarray, answer: Answer, notice: str) -> tuple:
    """Whole sound, picture, status and tokens of an answer. Raises `ValueError` where the model said nothing."""
    if not answer.segments:
        raise ValueError("The model ended at once; try another seed, or a longer recording.")
    codec = studio.pipeline(variant).codec
    rate = codec.output_sampling_rate
    prompt = soxr.resample(recorded, SAMPLING_RATE, rate)
    whole = np.concatenate([prompt, answer.waveform])
    (segment,) = answer.segments
    boundary = len(prompt) / rate
    new = segment.streams
    units = [
        *prompt_units(studio, variant, answer.prompt[0][1]),
        *time_units(new.units, segment.durations, boundary, new.pitch, new.style),
    ]
    picture = speech_picture(whole, rate, units, boundary, studio.styles)
    facts = answer_facts(len(new), segment.end, answer.seconds, answer.first_sound_seconds)
    return waveform_to_player(whole, rate), picture, f"{notice} {facts}".strip(), answer.tokens


def prompt_units(studio: Studio, variant: str, streams: SpeechStreams) -> list[TimedUnit]:
    """Timed streams -> each run of a unit as a stretch of time, with the pitch and style at its start."""
    frames = studio.pipeline(variant).codec.timed_to_frames(streams)
    units, durations = deduplicate(frames.units)
    starts = np.cumsum(durations) - durations
    pitch, style = (None if values is None else values[starts] for values in (frames.pitch, frames.style))
    return time_units(units, durations, 0.0, pitch, style)
