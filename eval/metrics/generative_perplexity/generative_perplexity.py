"""Generative perplexity and auto-BLEU of speech as a metric of `evaluate`; what it computes is in `tinywave.eval`."""

import datasets
import evaluate

from tinywave.eval import generation_metrics, metric_inputs

_DESCRIPTION = """\
The continuations of a speech language model are synthesized and transcribed, and the transcripts are measured.
Perplexity is exp(mean over transcripts of the mean negative log-likelihood) under a causal text language model, the
judge. Auto-BLEU-2 is the geometric mean of the shares of words and of word pairs that are repeated within a
transcript, averaged over transcripts. Low perplexity with high auto-BLEU indicates repetitive text.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of `str`): transcripts of the continuations.
    model (*optional*): the judge: a causal text language model, its folder, or a GGUF file. Without it the perplexity
        is not measured.
    tokenizer (*optional*): of the judge, if it is passed as a model.
    batch_size (`int`, defaults to 8): texts per forward pass; it does not change the numbers.
    seed (`int`, defaults to 0): of the bootstrap.

Returns:
    perplexity and auto_bleu_2, each a dict of "value", "ci95" and "n" or of "not_measured", a reason; n,
    num_empty_transcripts, judge and convention.

Examples:

    >>> import evaluate
    >>> generative_perplexity = evaluate.load("eval/metrics/generative_perplexity")
    >>> texts = ["the dog and the cat and the dog", "a bird sang", ""]
    >>> result = generative_perplexity.compute(predictions=texts, model="assets/teacher")
    >>> round(result["auto_bleu_2"]["value"], 3), result["auto_bleu_2"]["n"], result["num_empty_transcripts"]
    (0.354, 2, 1)
    >>> result["perplexity"]["n"], result["perplexity"]["value"] > 1
    (2, True)
"""

_CITATION = r"""\
@article{lakhotia2021generative,
  title={On Generative Spoken Language Modeling from Raw Audio},
  author={Lakhotia, Kushal and Kharitonov, Evgeny and Hsu, Wei-Ning and Adi, Yossi and Polyak, Adam and
          Bolte, Benjamin and Nguyen, Tu-Anh and Copet, Jade and Baevski, Alexei and Mohamed, Abdelrahman and
          Dupoux, Emmanuel},
  journal={arXiv preprint arXiv:2102.01192},
  year={2021}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class GenerativePerplexity(evaluate.Metric):
    """Generative perplexity and auto-BLEU of speech."""

    def _info(self):
        return evaluate.MetricInfo(
            module_type="metric",
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Value("string")}),
            reference_urls=["https://arxiv.org/abs/2102.01192"],
        )

    def add_batch(self, **columns):
        """Adds items, one a row of each column."""
        super().add_batch(**metric_inputs.columns_to_batch(self.features, columns))

    def add(self, *, prediction):
        """Adds one item."""
        self.add_batch(predictions=[prediction])

    def _compute(self, **inputs):
        return generation_metrics.compute_generative_perplexity(**inputs)
