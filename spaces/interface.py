"""The page: its tabs, its looks, and how it is served."""

import gradio as gr
from starlette.middleware import Middleware

from . import zero_gpu  # noqa: F401 - before the tabs, which import torch
from .codec_tab import build_codec_tab
from .comparison_tab import build_comparison_tab
from .continuation_tab import build_continuation_tab
from .evaluation_tab import build_evaluation_tab
from .interleaved_tab import build_interleaved_tab
from .middleware import PublicEndpoints, UploadLimit
from .recordings import example_recordings, provide_ffmpeg
from .studio import Studio

TITLE = "TinyWave"
INTRODUCTION = """# TinyWave

Record a sentence, and a small language model continues it. The model uses no text: speech is encoded as a sequence of
units, 25 per second, and the model predicts the units that follow.
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
    # Text has a contrast of 4.5 or more to its background, light and dark (WCAG 2.1, AA).
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_hover_dark="*primary_800",
    block_title_text_color="*primary_800",
    block_title_text_color_dark="*neutral_100",
    block_title_background_fill_dark="*primary_800",
    block_label_text_color="*primary_800",
    block_label_text_color_dark="*neutral_100",
    block_label_background_fill_dark="*primary_800",
    checkbox_label_background_fill_selected="*primary_700",
    checkbox_label_background_fill_selected_dark="*primary_700",
)
STYLE = """
.gradio-container { width: 100%; max-width: 1060px !important; margin: 0 auto; }
.gradio-container h1 { font-weight: 650; letter-spacing: -0.02em; margin-bottom: 0.2em; }
#introduction { max-width: 44em; }
#status { min-height: 3.2em; }
#chat button[title="Share"] { display: none; }
.gradio-container button[role="tab"].selected { color: var(--primary-700); }
.dark .gradio-container button[role="tab"].selected, .dark.gradio-container button[role="tab"].selected {
  color: var(--primary-300);
}
.gradio-container time, .gradio-container .min_value, .gradio-container .max_value,
.gradio-container .playback, .gradio-container .playback span, .gradio-container footer, .gradio-container footer * {
  color: var(--body-text-color-subdued) !important;
}
@media (max-width: 640px) { .gradio-container .fillable { padding: 12px !important; } }
"""

# What gradio leaves without a role or a name, for readers of a screen: as it appears, and whenever it changes.
SCRIPT = """
() => {
  const name = () => {
    for (const empty of document.querySelectorAll('div[aria-label]:not([role])')) empty.setAttribute('role', 'img');
    for (const image of document.querySelectorAll('button > .image-frame img')) {
      const button = image.closest('button');
      if (!button.getAttribute('aria-label')) button.setAttribute('aria-label', 'Enlarge the picture');
      if (!image.alt) image.alt = 'Spectrogram and units of what is heard';
    }
  };
  name();
  new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
}
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


def public_endpoints(blocks: gr.Blocks) -> list[str]:
    """Return the names of the endpoints that are meant for programs."""
    dependencies = blocks.get_config_file()["dependencies"]
    return [item["api_name"] for item in dependencies if item["api_visibility"] == "public" and item["api_name"]]


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
    guards = [Middleware(PublicEndpoints, names=public_endpoints(blocks)), Middleware(UploadLimit)]
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
        show_error=True,  # of inputs that a component refuses; handlers show what is meant for visitors
        app_kwargs={"middleware": guards},
        state_session_capacity=MAX_SESSIONS,
        theme=THEME,
        css=STYLE,
        js=SCRIPT,
    )
    return address
