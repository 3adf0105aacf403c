"""A conversation of text and speech in any order, which the model continues in either."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import gradio as gr
from gradio.processing_utils import save_audio_to_cache
from gradio.utils import get_upload_folder

from ..pipeline_tinywave import GeneratedSegment
from ..tokenization_tinywave import Segment, check_text
from .page import (
    INTERNAL,
    ONE_AT_A_TIME,
    sampling_from,
    sampling_inputs,
    shows_errors,
    style_input,
    variant_input,
    waveform_to_player,
)
from .recordings import load_recording
from .studio import Answer, Sampling, Studio
from .zero_gpu import on_gpu

MODALITY_CHOICES = [("speech", "speech"), ("text", "text"), ("whatever comes", "free")]
STATE_SECONDS = 3600
EXPIRED = "*(this sound has been deleted from the server)*"


@dataclass(frozen=True)
class Conversation:
    """What was said and written so far.

    Attributes:
        variant (`str`): of the model that it is held with; its units mean nothing to another.
        segments: text, and speech as streams, as a pipeline takes them.
        messages: the same for the page; speech as {"path": file}.
    """

    variant: str = ""
    segments: list[Segment] = field(default_factory=list)
    messages: list[dict] = field(default_factory=list)

    def visible(self) -> list[dict]:
        """The messages, without the sounds whose files are gone by now."""
        return [
            message if isinstance(message["content"], str) or Path(message["content"]["path"]).is_file()
            else message | {"content": EXPIRED}
            for message in self.messages
        ]  # fmt: skip


def build_interleaved_tab(studio: Studio) -> None:
    conversation = gr.State(Conversation(), time_to_live=STATE_SECONDS)
    chat = gr.Chatbot(
        label="Conversation",
        height=380,
        buttons=[],
        feedback_options=None,
        elem_id="chat",
        placeholder="Write a sentence, record one, or both. Try: *One day, Emma went to the farm.*",
    )
    message = gr.MultimodalTextbox(
        sources=["microphone", "upload"],
        file_types=["audio"],
        file_count="multiple",
        show_label=False,
        placeholder="Write or record ...",
        max_plain_text_length=2000,
        elem_id="message",
    )
    status = gr.Markdown("", elem_id="chat_status")
    with gr.Row():
        output_modality = gr.Radio(MODALITY_CHOICES, value="free", label="Answer in")
        answers = gr.Checkbox(
            True, label="Answer", info="Off: only add to the conversation, to bring text and speech in any order."
        )
    with gr.Row():
        stop = gr.Button("Stop", variant="stop", min_width=80)
        clear = gr.Button("New conversation", min_width=120)
    with gr.Accordion("Settings", open=False):
        variant = variant_input(studio)
        settings = [style_input(studio, variant), *sampling_inputs()]
    with gr.Accordion("Tokens", open=False):
        tokens = gr.Textbox(show_label=False, lines=4, max_lines=12, interactive=False, elem_id="chat_tokens")

    @on_gpu
    @shows_errors
    def interleaved(
        message,
        conversation,
        output_modality,
        answers,
        variant,
        style,
        seconds,
        temperature,
        top_p,
        seed,
        match_loudness,
    ):
        sampling = sampling_from(seconds, temperature, top_p, seed, match_loudness, style)
        yield from turn_events(studio, message, conversation, output_modality, answers, variant, sampling)

    event = message.submit(
        interleaved,
        [message, conversation, output_modality, answers, variant, *settings],
        [chat, conversation, tokens, status, message],
        api_name="interleaved",
        api_description="Add text and recordings to the session's conversation and get the next turn.",
        show_progress_on=[status],
        **ONE_AT_A_TIME,
    )
    stop.click(lambda: "Stopped.", None, status, cancels=[event], **INTERNAL)
    # The page's own bin empties what is seen only, and the units of one variant mean nothing to the other.
    for start_again in (clear.click, chat.clear, variant.change):
        start_again(lambda: ([], Conversation(), "", ""), None, [chat, conversation, tokens, status], **INTERNAL)


def turn_events(
    studio: Studio,
    message: dict | None,
    conversation: Conversation,
    output_modality: str,
    answers: bool,
    variant: str,
    sampling: Sampling,
) -> Iterator[tuple]:
    """(messages, conversation, tokens, status, message box) as an answer comes."""
    conversation = add_message(conversation, message, variant)
    emptied, skip = {"text": "", "files": []}, gr.skip()
    if not answers:
        conversation = replace(conversation, segments=studio.encode_conversation(conversation.segments, variant))
        yield conversation.visible(), conversation, "", "Added.", emptied
        return
    yield conversation.visible(), skip, skip, "Reading and listening ...", emptied
    written = ""
    for event in studio.interleaved(conversation.segments, output_modality, variant, sampling):
        if isinstance(event, Answer):
            conversation = add_answer(conversation, event)
            yield conversation.visible(), conversation, event.tokens, "", skip
        elif event.modality == "text":
            written += event.text
            yield skip, skip, skip, f"Writing: {written}", skip
        else:
            yield skip, skip, skip, f"Speaking: {event.end:.1f} s so far.", skip


def add_message(conversation: Conversation, message: dict | None, variant: str) -> Conversation:
    """Add what a visitor wrote and recorded, the text first.

    Raises `ValueError` for an empty message, a typed unit token, a bad recording, and another variant than before.
    """
    text, files = ((message or {}).get(name) for name in ("text", "files"))
    text = (text or "").strip()
    if not text and not files:
        raise ValueError("The message is empty: write something, or record it with the microphone.")
    if conversation.segments and conversation.variant != variant:
        raise ValueError(f"This conversation is with the {conversation.variant} model; start a new one to change it.")
    segments, messages = [], []
    if text:
        check_text(text)
        segments.append(("text", text))
        messages.append({"role": "user", "content": text})
    for path in files or ():
        segments.append(("speech", load_recording(path).waveform))
        messages.append({"role": "user", "content": {"path": str(path)}})
    return Conversation(variant, [*conversation.segments, *segments], [*conversation.messages, *messages])


def add_answer(conversation: Conversation, answer: Answer) -> Conversation:
    """Add the model's turn. Raises `ValueError` where it is empty."""
    if not answer.segments:
        raise ValueError("The model had nothing to add; try another seed, or say more.")
    segments, messages = [], []
    for segment in answer.segments:
        segments.append((segment.modality, segment.text if segment.modality == "text" else segment.streams))
        messages.append({"role": "assistant", "content": segment_to_content(segment)})
    return Conversation(conversation.variant, [*answer.prompt, *segments], [*conversation.messages, *messages])


def segment_to_content(segment: GeneratedSegment) -> str | dict:
    """Text as it is; speech as a file in the page's own cache, which is emptied in time."""
    if segment.modality == "text":
        return segment.text.strip() or "..."
    rate, samples = waveform_to_player(segment.waveform.cpu().numpy(), segment.sampling_rate)
    return {"path": save_audio_to_cache(samples, rate, format="wav", cache_dir=get_upload_folder())}
