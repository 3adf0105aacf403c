"""Speech-text sentiment preservation as a metric of `evaluate`; what it computes is in `tinywave.eval`."""

import datasets
import evaluate

from tinywave.eval import generation_metrics, metric_inputs

_DESCRIPTION = """\
STSP: a prompt of known sentiment, spoken or written, is continued, and a classifier predicts the sentiment of the
continuation. The accuracy is the share of continuations with the sentiment of their prompt; chance is 1/3. A
continuation without sentiment (None, or "none") counts as not preserved.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of `str`): sentiment of each continuation: "positive", "neutral", "negative", or None.
    references (list of `str`): sentiment of each prompt: "positive", "neutral" or "negative".
    seed (`int`, defaults to 0): of the bootstrap.

Returns:
    accuracy, n, standard_error, ci95, chance, accuracy_by_label, balanced_accuracy, confusion, num_unlabelled and
    convention.

Examples:

    >>> import evaluate
    >>> stsp = evaluate.load("eval/metrics/stsp")
    >>> result = stsp.compute(
    ...     predictions=["positive", "neutral", None, "negative"],
    ...     references=["positive", "positive", "negative", "negative"],
    ... )
    >>> result["accuracy"], result["n"], result["num_unlabelled"]
    (0.5, 4, 1)
    >>> result["accuracy_by_label"]
    {'positive': 0.5, 'negative': 0.5}
"""

_CITATION = r"""\
@article{nguyen2024spirit,
  title={SpiRit-LM: Interleaved Spoken and Written Language Model},
  author={Nguyen, Tu Anh and Muller, Benjamin and Yu, Bokai and Costa-jussa, Marta R. and Elbayad, Maha and
          Popuri, Sravya and Ropers, Christophe and Duquenne, Paul-Ambroise and Algayres, Robin and
          Mavlyutov, Ruslan and Gat, Itai and Williamson, Mary and Synnaeve, Gabriel and Pino, Juan and
          Sagot, Beno{\^\i}t and Dupoux, Emmanuel},
  journal={arXiv preprint arXiv:2402.05755},
  year={2024}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Stsp(evaluate.Metric):
    """Speech-text sentiment preservation."""

    def _info(self):
        return evaluate.MetricInfo(
            module_type="metric",
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
            reference_urls=["https://arxiv.org/abs/2402.05755"],
        )

    def add_batch(self, **columns):
        """Adds items, one a row of each column."""
        labels = [
            generation_metrics.NO_SENTIMENT if label is None else label for label in columns["predictions"] or ()
        ]
        super().add_batch(**metric_inputs.columns_to_batch(self.features, columns | {"predictions": labels}))

    def add(self, *, prediction, reference):
        """Adds one item."""
        self.add_batch(predictions=[prediction], references=[reference])

    def _compute(self, **inputs):
        return generation_metrics.compute_sentiment_transfer(**inputs)
