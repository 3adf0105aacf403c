"""The page of the metric: log-likelihoods in, perplexity with its interval out."""

from pathlib import Path

from tinywave.eval.metric_page import score_page

TITLE = "Normalized perplexity of speech"
page = score_page(Path(__file__).resolve().parent, "normalized_perplexity", TITLE, normalised=False)

if __name__ == "__main__":
    page.launch(max_file_size="50mb")
