"""The page of the metric: log-likelihoods in, accuracy with its interval out."""

from pathlib import Path

from tinywave.eval.metric_page import score_page

page = score_page(Path(__file__).resolve().parent, "sblimp", "sBLIMP")

if __name__ == "__main__":
    page.launch(max_file_size="50mb")
