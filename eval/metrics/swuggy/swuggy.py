"""sWUGGY as a metric of `evaluate`; what it computes is in `tinywave.eval`."""

import evaluate

from tinywave.eval import metric_inputs

_DESCRIPTION = """\
sWUGGY: a spoken word and a pseudo-word of matched phonotactics, in several voices. A pair counts 1 where the model
finds the word likelier, 0.5 on a tie and 0 otherwise. Voices of an id are averaged first, then ids, as in the
ZeroSpeech 2021 challenge; "in_vocab" is the mean over the frequency bands other than "oov", weighted by their n.
Speech is a list of raw units (one a frame, repeats kept) or, for a model that reads pitch and style as well, a dict
of the lists "units", "pitch" and "style".
"""

_KWARGS_DESCRIPTION = """
Args:
    id, voice (lists of `str`): of the pair; no (part, id, voice) twice.
    group (list of `str`): what resampling keeps together, the id where in doubt.
    part (list of `str`): frequency band of the word, "oov" for words outside the vocabulary.
    positive, negative (lists): the word and the pseudo-word, as speech.
    positive_sum, negative_sum, positive_count, negative_count (lists of numbers): in the configuration "scores", in
        place of positive and negative: the summed log-likelihood of a half in nats, and how many tokens were scored.
    model: a causal language model of speech units, or its folder. Not in "scores".
    normalisation (`str`, defaults to "mean"): "mean" or "sum" log-likelihood decides the credit; of speech also
        "local" and "pmi", which compare the tokens after the halves begin to differ (arXiv 2601.06329).
    vocabulary (`str`, defaults to "full"): "full" normalises over the model's whole vocabulary, "scored" over the ids
        of speech alone.
    batch_size (`int`, defaults to 8): sequences a forward pass; it does not change the numbers.
    deduplicate (`bool`, defaults to True): merge runs of equal units.
    sequence_format (*optional*): how units become ids, for models that are not TinyWave's, such as a
        `tinywave.eval.sequence_formats.UnitSequenceFormat`.
    seed (`int`, defaults to 0): of the bootstrap.

Returns:
    accuracy, n (ids), standard_error, ci95 (bootstrap over groups), accuracy_by_part (frequency band -> the same
    four), in_vocab (the same four, None without such pairs), num_pairs and convention.

Examples:

    >>> import evaluate
    >>> swuggy = evaluate.load("eval/metrics/swuggy", "scores")
    >>> scores = {
    ...     "id": ["cabin", "cabin", "ladder", "quoin"],
    ...     "voice": ["A", "B", "A", "A"],
    ...     "group": ["cabin", "cabin", "ladder", "quoin"],
    ...     "part": ["1-5", "1-5", "6-20", "oov"],
    ...     "positive_sum": [-20.0, -21.0, -30.0, -12.0],
    ...     "positive_count": [10, 10, 15, 8],
    ...     "negative_sum": [-25.0, -20.0, -28.0, -12.0],
    ...     "negative_count": [10, 10, 10, 8],
    ... }
    >>> result = swuggy.compute(**scores)
    >>> round(result["accuracy"], 3), result["n"], result["in_vocab"]["accuracy"]
    (0.667, 3, 0.75)
    >>> round(swuggy.compute(**scores, normalisation="sum")["accuracy"], 3)
    0.333

    With a model:

    >>> from tinywave.eval.metric_inputs import pairs_to_columns
    >>> from tinywave.eval.suites import read_suite
    >>> pairs = read_suite("assets/suites/lexical.parquet")[:4]
    >>> swuggy = evaluate.load("eval/metrics/swuggy")
    >>> result = swuggy.compute(**pairs_to_columns("swuggy", pairs), model="assets/teacher")
    >>> result["n"], result["convention"]["normalisation"], result["convention"]["sequence"]["scored_streams"]
    (4, 'mean', ['unit', 'pitch', 'style'])
"""

_CITATION = r"""\
@article{nguyen2020zero,
  title={The Zero Resource Speech Benchmark 2021: Metrics and baselines for unsupervised spoken language modeling},
  author={Nguyen, Tu Anh and de Seyssel, Maureen and Roz{\'e}, Patricia and Rivi{\`e}re, Morgane and
          Kharitonov, Evgeny and Baevski, Alexei and Dunbar, Ewan and Dupoux, Emmanuel},
  journal={arXiv preprint arXiv:2011.11588},
  year={2020}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Swuggy(evaluate.Metric):
    """sWUGGY."""

    def _info(self):
        return evaluate.MetricInfo(
            module_type="metric",
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=metric_inputs.module_features("swuggy", self.config_name),
            reference_urls=["https://arxiv.org/abs/2011.11588"],
        )

    def add_batch(self, **columns):
        """Adds items, one a row of each column."""
        super().add_batch(**metric_inputs.columns_to_batch(self.features, columns))

    def add(self, **item):
        """Adds one item."""
        self.add_batch(**{name: [value] for name, value in item.items()})

    def _compute(self, **inputs):
        return metric_inputs.compute_accuracy("swuggy", **inputs)
