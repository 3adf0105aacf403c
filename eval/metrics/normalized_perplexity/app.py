"""The page of the metric: log-likelihoods in, perplexity with its interval out."""

from pathlib import Path

import evaluate
import gradio as gr

from tinywave.eval.metric_inputs import read_scores

FOLDER = Path(__file__).parent
METRIC = evaluate.load(str(FOLDER / "normalized_perplexity.py"), "scores")


def score(path: str | None) -> dict:
    """The result of an uploaded file; what is wrong with it is shown on the page."""
    if path is None:
        raise gr.Error("Choose a file first.")
    try:
        return METRIC.compute(**read_scores("normalized_perplexity", path))
    except ValueError as error:
        raise gr.Error(str(error)) from error


with gr.Blocks(title="Normalised perplexity of speech") as page:
    gr.Markdown((FOLDER / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2])
    with gr.Row():
        file = gr.File(label="Scores (.parquet or .jsonl)", file_types=[".parquet", ".jsonl"], type="filepath")
    button = gr.Button("Compute", variant="primary")
    result = gr.JSON(label="Result")
    button.click(score, [file], result, api_name="score")

if __name__ == "__main__":
    page.launch(max_file_size="50mb")
