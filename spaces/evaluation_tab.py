"""A small part of the test suites through every model, as a plot with intervals."""

from collections.abc import Iterator

import gradio as gr

from ..eval.results_table import suite_to_label
from .page import INTERNAL, ONE_AT_A_TIME, shows_errors
from .pictures import accuracy_picture
from .studio import MAX_PAIRS, Studio
from .zero_gpu import on_gpu

COLUMNS = ["suite", "model", "pairs", "right, %", "from, %", "to, %"]
EXPLANATION = (
    "Each pair holds something said right and something said almost right: a word and a non-word, a grammatical "
    "sentence and one that is not, a fitting and an unfitting end of a story, one voice and a change of voice. "
    "The model is right when it finds the first more likely. Guessing gets 50 %. Few pairs make wide intervals."
)


def build_evaluation_tab(studio: Studio) -> None:
    gr.Markdown(EXPLANATION)
    num_pairs = gr.Slider(10, MAX_PAIRS, value=20, step=10, label="Pairs of each suite")
    with gr.Row():
        start = gr.Button("Evaluate", variant="primary", min_width=120, elem_id="evaluate")
        stop = gr.Button("Stop", variant="stop", min_width=80)
    status = gr.Markdown("")
    picture = gr.Image(interactive=False, label="Pairs right", show_label=False, buttons=["fullscreen"])
    table = gr.Dataframe(headers=COLUMNS, interactive=False, label="Values", buttons=[], wrap=True)

    @on_gpu
    @shows_errors
    def evaluate(num_pairs):
        yield from evaluation_events(studio, num_pairs)

    event = start.click(
        evaluate,
        [num_pairs],
        [picture, table, status],
        api_name="evaluate",
        api_description="Score every model on some pairs of each suite: a plot and a table.",
        show_progress_on=[status],
        **ONE_AT_A_TIME,
    )
    stop.click(lambda: "Stopped.", None, status, cancels=[event], **INTERNAL)


def evaluation_events(studio: Studio, num_pairs: int) -> Iterator[tuple]:
    """(picture, table, status), growing by a suite."""
    yield None, [], "Reading ..."
    for results in studio.evaluate(num_pairs):
        rows = [
            [suite_to_label(suite), name.replace("_", " "), result.n]
            + [round(100 * value, 1) for value in (result.accuracy, *result.ci95)]
            for suite, by_model in results.items()
            for name, result in by_model.items()
        ]
        yield accuracy_picture(results), rows, f"{len(results)} suites done."
