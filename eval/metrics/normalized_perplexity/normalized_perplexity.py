"""Normalized perplexity of speech as a metric of `evaluate`; what it computes is in `tinywave.eval`."""

import evaluate

from tinywave.eval import metric_inputs

_DESCRIPTION = """\
Perplexity of held-out speech. It has three values, because papers use different definitions: "token_weighted" is
exp(sum NLL / sum N), "utterance_mean" the mean over utterances of exp(NLL / N), and "bits_per_second" sum NLL / ln 2 /
seconds of audio, which can be compared between models with different tokenizers. Speech is a list of raw units (one
per frame, with repeats) or, for a model with pitch and style streams, a dict of the lists "units", "pitch" and
"style".
"""

_KWARGS_DESCRIPTION = """
Args:
    id (list of `str`): of the utterance, unique.
    speech (list): the utterances.
    sum, count, seconds (lists of numbers): in the configuration "scores", in place of speech: the summed
        log-likelihood of an utterance in nats, the number of scored tokens, and its duration.
    model: a causal language model of speech units, or its folder. Not in "scores".
    vocabulary (`str`, defaults to "full"): "full" normalizes over the whole vocabulary of the model, "scored" over the
        speech ids alone.
    batch_size (`int`, defaults to 8): sequences per forward pass; it does not change the numbers.
    deduplicate (`bool`, defaults to True): merge runs of equal units.
    sequence_format (*optional*): conversion of units to ids, for models other than TinyWave's, such as a
        `tinywave.eval.sequence_formats.UnitSequenceFormat`.
    seed (`int`, defaults to 0): of the bootstrap.

Returns:
    token_weighted, utterance_mean, bits_per_second, ci95 (of token_weighted, bootstrap over utterances), n
    (utterances), num_tokens and convention.

Examples:

    >>> import evaluate
    >>> perplexity = evaluate.load("eval/metrics/normalized_perplexity", "scores")
    >>> result = perplexity.compute(id=["a", "b"], sum=[-200.0, -30.0], count=[100, 10], seconds=[8.0, 1.0])
    >>> round(result["token_weighted"], 3), round(result["utterance_mean"], 3), round(result["bits_per_second"], 3)
    (8.092, 13.737, 36.869)

    With a model:

    >>> from tinywave.eval.suites import read_suite
    >>> pairs = read_suite("assets/suites/lexical.parquet")[:4]
    >>> speech = [
    ...     {"units": pair.positive_units, "pitch": pair.positive_pitch, "style": pair.positive_style}
    ...     for pair in pairs
    ... ]
    >>> perplexity = evaluate.load("eval/metrics/normalized_perplexity")
    >>> result = perplexity.compute(id=[pair.id for pair in pairs], speech=speech, model="assets/teacher")
    >>> result["n"], result["token_weighted"] > 1
    (4, True)
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
class NormalizedPerplexity(evaluate.Metric):
    """Normalized perplexity of speech."""

    def _info(self):
        return evaluate.MetricInfo(
            module_type="metric",
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=metric_inputs.module_features("normalized_perplexity", self.config_name),
            reference_urls=["https://arxiv.org/abs/2102.01192"],
        )

    def add_batch(self, **columns):
        """Adds items, one a row of each column."""
        super().add_batch(**metric_inputs.columns_to_batch(self.features, columns))

    def add(self, **item):
        """Adds one item."""
        self.add_batch(**{name: [value] for name, value in item.items()})

    def _compute(self, **inputs):
        return metric_inputs.compute_perplexity(**inputs)
