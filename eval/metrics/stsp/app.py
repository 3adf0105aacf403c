"""The page of the metric: labels in, numbers with their intervals out."""

from pathlib import Path

import evaluate
import gradio as gr

FOLDER = Path(__file__).parent
METRIC = evaluate.load(str(FOLDER / "stsp.py"))


def score(text: str) -> dict:
    """The result of lines "<sentiment of the prompt> <sentiment of the continuation>"."""
    pairs = [line.split() for line in text.splitlines() if line.strip()]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise gr.Error("Write two sentiments on each line: that of the prompt, then that of the continuation.")
    references, predictions = zip(*pairs, strict=True)
    try:
        return METRIC.compute(predictions=list(predictions), references=list(references))
    except ValueError as error:
        raise gr.Error(str(error)) from error


with gr.Blocks(title="Speech-text sentiment preservation") as page:
    gr.Markdown((FOLDER / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2])
    text = gr.Textbox(
        "positive positive\nnegative neutral",
        label="Sentiment of the prompt and of the continuation, a pair a line",
        lines=6,
    )
    button = gr.Button("Compute", variant="primary")
    result = gr.JSON(label="Result")
    button.click(score, text, result, api_name="score")

if __name__ == "__main__":
    page.launch()
