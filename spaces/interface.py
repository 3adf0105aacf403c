"""The page: its tabs, its looks, and how it is served."""

import gradio as gr

from . import zero_gpu  # noqa: F401 - before the tabs, which import torch
from .codec_tab import build_codec_tab
from .comparison_tab import build_comparison_tab
from .continuation_tab import build_continuation_tab
from .evaluation_tab import build_evaluation_tab
from .interleaved_tab import build_interleaved_tab
from .recordings import example_recordings, provide_ffmpeg
from .studio import Studio

TITLE = "TinyWave"
INTRODUCTION = """# TinyWave

Speak, and a small language model goes on speaking. It knows no words: it hears your voice as a row of short sounds,
called speech units, 25 a second, and says those that it expects to follow.
"""
MAX_WAITING = 40
MAX_FILE_SIZE = "25mb"
# Seconds between two clearings of the cache, and the age at which a file goes.
CACHE_SECONDS = (600, 3600)
MAX_SESSIONS = 500

# Fonts of the visitor's own system: the page asks no other server for anything.
THEME = gr.themes.Soft(
    primary_hue="teal",
    secondary_hue="teal",
    neutral_hue="slate",
    radius_size="md",
    font=["system-ui", "Segoe UI", "Roboto", "sans-serif"],
    font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
).set(
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    block_title_text_color="*primary_800",
    block_label_text_color="*primary_800",
    checkbox_label_background_fill_selected="*primary_700",
)
STYLE = """
.gradio-container { width: 100%; max-width: 1060px !important; margin: 0 auto; }
.gradio-container h1 { font-weight: 650; letter-spacing: -0.02em; margin-bottom: 0.2em; }
#introduction { max-width: 44em; }
#status { min-height: 3.2em; }
#chat button[title="Share"] { display: none; }
@media (max-width: 640px) { .gradio-container .fillable { padding: 12px !important; } }
"""


def build_interface(studio: Studio) -> gr.Blocks:
    """The whole page over one [`Studio`].

    Its named endpoints, for `gradio_client`, are `/continue_speech`, `/interleaved`, `/compare`, `/evaluate` and
    `/encode`: the same handlers that the buttons call.
    """
    provide_ffmpeg()
    examples = example_recordings()
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=CACHE_SECONDS) as blocks:
        gr.Markdown(INTRODUCTION, elem_id="introduction")
        with gr.Tab("Speech continuation"):
            build_continuation_tab(studio, examples)
        with gr.Tab("Text and speech"):
            build_interleaved_tab(studio)
        with gr.Tab("Teacher beside student"):
            build_comparison_tab(studio, examples)
        with gr.Tab("Evaluate"):
            build_evaluation_tab(studio)
        with gr.Tab("Codec"):
            build_codec_tab(studio, examples)
    return blocks


def launch(blocks: gr.Blocks, host: str | None = None, port: int | None = None, *, wait: bool = True) -> str:
    """Serve the page and return its address.

    Nothing is shared or tracked; no file is readable but those that the page itself made and the visitors' uploads;
    visitors and programs wait in one queue of 40 places, and whoever comes when it is full is told so.

    Args:
        host (`str`, *optional*): to listen at. Default: GRADIO_SERVER_NAME, which a Space sets, or 127.0.0.1.
        port (`int`, *optional*): default: GRADIO_SERVER_PORT, or the first free one from 7860.
        wait (`bool`, default True): come back only when the server has stopped.

    Raises `OSError` where the port is taken.
    """
    _, address, _ = blocks.queue(max_size=MAX_WAITING, default_concurrency_limit=1, api_open=False).launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=not wait,
        share=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=["api"],
        max_file_size=MAX_FILE_SIZE,
        state_session_capacity=MAX_SESSIONS,
        theme=THEME,
        css=STYLE,
    )
    return address
