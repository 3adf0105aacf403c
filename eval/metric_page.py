"""The page of a metric whose scores come from a file; the `app.py` of each such module shows it."""

from pathlib import Path

import evaluate
import gradio as gr

from .metric_inputs import SCORES, read_scores
from .scoring import NORMALISATIONS


def score_page(folder: Path, module: str, title: str, *, normalised: bool = True) -> gr.Blocks:
    """A page that computes a module from log-likelihoods in a file; its endpoint is `/score`.

    Args:
        folder: of the module, under whatever name; its card stands on the page.
        module: name of the module.
        title: as the browser shows it.
        normalised: whether the module lets one choose how log-likelihoods are normalised.
    """
    metric = evaluate.load(str(folder / f"{module}.py"), SCORES)

    def score(path: str | None, normalisation: str | None = None) -> dict:
        if path is None:
            raise gr.Error("Choose a file first.")
        options = {"normalisation": normalisation} if normalised else {}
        try:
            return metric.compute(**read_scores(module, path), **options)
        except ValueError as error:
            raise gr.Error(str(error)) from error

    with gr.Blocks(title=title) as page:
        gr.Markdown((folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2])
        with gr.Row():
            inputs = [gr.File(label="Scores (.parquet or .jsonl)", file_types=[".parquet", ".jsonl"], type="filepath")]
            if normalised:
                inputs.append(gr.Dropdown(list(NORMALISATIONS), value="mean", label="Log-likelihood that decides"))
        button = gr.Button("Compute", variant="primary")
        button.click(score, inputs, gr.JSON(label="Result"), api_name="score")
    return page
