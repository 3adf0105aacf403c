"""The page of the metric: transcripts in, numbers with their intervals out."""

from pathlib import Path

import evaluate
import gradio as gr

FOLDER = Path(__file__).parent
METRIC = evaluate.load(str(FOLDER / "generative_perplexity.py"))


def score(text: str) -> dict:
    """Auto-BLEU of the transcripts; the perplexity needs a judge, which the page does not load."""
    try:
        return METRIC.compute(predictions=text.splitlines())
    except ValueError as error:
        raise gr.Error(str(error)) from error


with gr.Blocks(title="Generative perplexity and auto-BLEU of speech") as page:
    gr.Markdown((FOLDER / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2])
    text = gr.Textbox("the dog and the cat and the dog\na bird sang", label="Transcripts, one a line", lines=6)
    button = gr.Button("Compute", variant="primary")
    result = gr.JSON(label="Result")
    button.click(score, text, result, api_name="score")

if __name__ == "__main__":
    page.launch()
