"""What the tabs share: errors a visitor can read, sounds and settings."""

import functools
import inspect
import io
import logging
from collections.abc import Callable, Mapping

import gradio as gr
import numpy as np
import soundfile

from .recordings import MAX_PROMPT_SECONDS, SAMPLING_RATE
from .studio import AS_RECORDED, EXPRESSIVE, MAX_SECONDS, OFF, UNVERIFIED, VERIFIED, Sampling, Studio

# One answer at a time, over all tabs: two at once would share one random state and two cores.
ONE_AT_A_TIME = {"concurrency_limit": 1, "concurrency_id": "models", "trigger_mode": "once"}
INTERNAL = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
ERROR_SECONDS = 12
LABEL_OF_VARIANT = {"plain": "plain", "expressive": "expressive (pitch and style)"}
PARALLEL_HEADS_CHOICES = [("off", OFF), ("verified", VERIFIED), ("fast, not verified", UNVERIFIED)]

logger = logging.getLogger(__name__)


def shows_errors(handler: Callable) -> Callable:
    """Let a handler, a function or a generator function, show what it refuses as a message on the page.

    A `ValueError` is about the request and is shown as it stands. Anything else is a defect: the server's log gets the
    traceback, and the visitor a sentence.
    """
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def guarded(*arguments, **named):
            try:
                yield from handler(*arguments, **named)
            except Exception as error:
                raise to_message(error) from error

    else:

        @functools.wraps(handler)
        def guarded(*arguments, **named):
            try:
                return handler(*arguments, **named)
            except Exception as error:
                raise to_message(error) from error

    return guarded


def to_message(error: Exception) -> gr.Error:
    """An error -> what the page shows of it."""
    if isinstance(error, ValueError):
        return gr.Error(str(error), duration=ERROR_SECONDS, title="This did not work", print_exception=False)
    logger.error("a request failed", exc_info=error)
    return gr.Error(
        "Something went wrong on this server; the same request may work again in a moment.",
        duration=ERROR_SECONDS,
        print_exception=False,
    )


def waveform_to_wav(waveform: np.ndarray, sampling_rate: int) -> bytes:
    """One piece of a stream: 16-bit WAV bytes. Gradio would scale floats to the loudest sample of each piece."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(waveform, -1, 1), sampling_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def waveform_to_player(waveform: np.ndarray, sampling_rate: int) -> tuple[int, np.ndarray]:
    """A whole sound for `gr.Audio`: integers, which it does not scale."""
    return sampling_rate, np.round(np.clip(waveform, -1, 1) * 32767).astype(np.int16)


def recording_input(label: str = "Your voice") -> gr.Audio:
    """A microphone, or a file."""
    return gr.Audio(
        sources=["microphone", "upload"],
        type="filepath",
        label=f"{label} (up to {MAX_PROMPT_SECONDS:g} s)",
        editable=False,
        buttons=[],
        elem_classes="recording",
    )


def example_buttons(examples: Mapping[str, np.ndarray], recording: gr.Audio) -> None:
    """A button for each example, which takes the place of a recording."""
    gr.Markdown("No microphone? Choose a file, or take an example:")
    with gr.Row():
        for label, waveform in examples.items():
            player = waveform_to_player(waveform, SAMPLING_RATE)
            gr.Button(label, size="sm", min_width=120).click(lambda player=player: player, None, recording, **INTERNAL)


def variant_input(studio: Studio) -> gr.Radio:
    """Which of the model's variants answers; hidden where there is one."""
    return gr.Radio(
        [(LABEL_OF_VARIANT[variant], variant) for variant in studio.variants],
        value=studio.variants[0],
        label="Model",
        info="Plain hears which sounds you make; expressive also melody and mood.",
        visible=len(studio.variants) > 1,
    )


def style_input(studio: Studio, variant: gr.Radio) -> gr.Dropdown:
    """A speaking style; shown for a variant that has styles."""
    styles = studio.styles
    style = gr.Dropdown(
        [AS_RECORDED, *styles],
        value=AS_RECORDED,
        label="Speaking style",
        interactive=True,
        visible=bool(styles) and studio.variants[0] == EXPRESSIVE,
    )
    variant.change(
        lambda chosen: gr.update(visible=bool(styles) and chosen == EXPRESSIVE, value=AS_RECORDED),
        variant,
        style,
        **INTERNAL,
    )
    return style


def parallel_heads_inputs(studio: Studio) -> list[gr.Component]:
    """Whether drafts are used; nothing for a model without parallel heads, whose endpoint stays as it is."""
    if not studio.has_parallel_heads:
        return []
    choice = gr.Radio(
        PARALLEL_HEADS_CHOICES,
        value=Sampling.parallel_heads,
        label="Several tokens for each forward pass",
        info="Verified: as likely as one by one, in fewer passes. Not verified: fewer still, and worse.",
        elem_id="parallel_heads",
    )
    return [choice]


def sampling_inputs() -> list[gr.Component]:
    """Length, temperature, top-p, seed and loudness, in the order of [`sampling_from`]."""
    return [
        gr.Slider(1, MAX_SECONDS, value=Sampling.seconds, step=0.5, label="Length", info="Seconds of speech, about."),
        gr.Slider(0, 1.5, value=Sampling.temperature, step=0.05, label="Temperature", info="Higher is bolder."),
        gr.Slider(0.05, 1, value=Sampling.top_p, step=0.05, label="Top-p", info="Lower keeps to likely sounds."),
        gr.Number(value=Sampling.seed, precision=0, minimum=0, label="Seed", info="The same seed, the same answer."),
        gr.Checkbox(value=Sampling.match_loudness, label="As loud as the recording"),
    ]


def sampling_from(
    seconds: float,
    temperature: float,
    top_p: float,
    seed: int,
    match_loudness: bool = True,
    style: str = AS_RECORDED,
    parallel_heads: str = OFF,
) -> Sampling:
    """Values of [`sampling_inputs`] -> settings; raises `ValueError` where one is out of range."""
    return Sampling(seed, temperature, top_p, seconds, style, parallel_heads, match_loudness)


def answer_facts(num_units: int, spoken: float, seconds: float, first_sound: float | None) -> str:
    """One line about a finished answer."""
    first = "" if first_sound is None else f"; the first sound came after {first_sound:.1f} s"
    return f"{spoken:.1f} s of speech from {num_units} units, made in {seconds:.1f} s{first}."
