"""The same prompt through the teacher, the distilled student, and the student that had no teacher."""

from collections.abc import Iterator

import gradio as gr
import numpy as np

from ..eval.results import STUDENT, TEACHER
from .page import (
    INTERNAL,
    ONE_AT_A_TIME,
    example_buttons,
    recording_input,
    sampling_from,
    sampling_inputs,
    shows_errors,
    waveform_to_player,
)
from .recordings import load_recording
from .studio import NO_DISTILLATION, Answer, Sampling, Studio, describe_models
from .zero_gpu import on_gpu

LABELS = {TEACHER: "Teacher", STUDENT: "Student, distilled", NO_DISTILLATION: "Student, no distillation"}
COLUMNS = ["model", "parameters", "speech, s", "made in, s", "first sound, s"]


def build_comparison_tab(studio: Studio, examples: dict[str, np.ndarray]) -> None:
    missing = describe_models(studio.others)
    if missing:
        gr.Markdown(missing)
    recording = recording_input()
    example_buttons(examples, recording)
    with gr.Row():
        start = gr.Button("Compare", variant="primary", min_width=120, elem_id="compare")
        stop = gr.Button("Stop", variant="stop", min_width=80)
    status = gr.Markdown("")
    with gr.Row():
        players = [
            gr.Audio(
                interactive=False,
                label=label,
                min_width=220,
                buttons=["download"],
                visible=name in (TEACHER, *studio.others),
            )
            for name, label in LABELS.items()
        ]
    table = gr.Dataframe(headers=COLUMNS, interactive=False, label="Sizes and seconds", buttons=[], wrap=True)
    with gr.Accordion("Settings", open=False):
        settings = sampling_inputs()

    @on_gpu
    @shows_errors
    def compare(recording, seconds, temperature, top_p, seed, match_loudness):
        yield from comparison_events(
            studio, recording, sampling_from(seconds, temperature, top_p, seed, match_loudness)
        )

    event = start.click(
        compare,
        [recording, *settings],
        [*players, table, status],
        api_name="compare",
        api_description="Continue a recording with the teacher, the student and the student without distillation: "
        "three sounds, None where there is no such model, and a table of sizes and seconds.",
        show_progress_on=[status],
        **ONE_AT_A_TIME,
    )
    stop.click(lambda: "Stopped.", None, status, cancels=[event], **INTERNAL)


def comparison_events(studio: Studio, recording: str | None, sampling: Sampling) -> Iterator[tuple]:
    """(a sound for each of [`LABELS`], table, status), growing by a model."""
    clip = load_recording(recording)
    sounds, rows = dict.fromkeys(LABELS), []
    yield *sounds.values(), rows, f"{clip.notice} Listening ...".strip()
    for name, num_parameters, answer in studio.compare(clip.waveform, sampling):
        if answer.segments:
            sounds[name] = waveform_to_player(answer.waveform, answer.segments[0].sampling_rate)
        rows = [*rows, comparison_row(name, num_parameters, answer)]
        yield *sounds.values(), rows, f"{clip.notice} {LABELS[name]}: done.".strip()
    yield *sounds.values(), rows, f"{clip.notice} {describe_models(studio.others)}".strip()


def comparison_row(name: str, num_parameters: int, answer: Answer) -> list:
    """One row of the table, as [`COLUMNS`] say."""
    first_sound = answer.first_sound_seconds
    return [
        LABELS[name],
        f"{num_parameters / 1e6:.2f} M",
        round(sum(segment.end - segment.start for segment in answer.segments), 2),
        round(answer.seconds, 2),
        None if first_sound is None else round(first_sound, 2),
    ]
