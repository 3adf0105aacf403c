"""sWUGGY as a metric of `evaluate`; what it computes is in `tinywave.eval`."""

import evaluate

from tinywave.eval import metric_inputs

_DESCRIPTION = """\
sWUGGY: a spoken word and a pseudo-word of matched phonotactics, in several voices. A pair counts 1 if the model
assigns the word the higher likelihood, 0.5 for a tie and 0 otherwise. Voices of an id are averaged first, then ids, as
in the ZeroSpeech 2021 challenge; "in_vocab" is the mean over the frequency bands other than "oov", weighted by their
n. Speech is a list of raw units (one per frame, with repeats) or, for a model with pitch and style streams, a dict of
the lists "units", "pitch" and "style".
"""

_KWARGS_DESCRIPTION = """
Args:
    id, voice (lists of `str`): of the pair; no (part, id, voice) twice.
    group (list of `str`): items of one group are resampled together; if in doubt, use the id.
    part (list of `str`): frequency band of the word, "oov" for words outside the vocabulary.
    positive, negative (lists): the word and the pseudo-word, as speech.
    positive_sum, negative_sum, positive_count, negative_count (lists of numbers): in the configuration "scores", in
        place of positive and negative: the summed log-likelihood of each half in nats, and the number of scored
        tokens.
    model: a causal language model of speech units, or its folder. Not in "scores".
    normalisation (`str`, defaults to "mean"): compare the "mean" or "sum" log-likelihood; for speech also "local" and
        "pmi", which compare the tokens after the first difference between the halves (arXiv 2601.06329).
    vocabulary (`str`, defaults to "full"): "full" normalizes over the whole vocabulary of the model, "scored" over the
        speech ids alone.
    batch_size (`int`, defaults to 8): sequences per forward pass; it does not change the numbers.
    deduplicate (`bool`, defaults to True): merge runs of equal units.
    sequence_format (*optional*): conversion of units to ids, for models other than TinyWave's, such as a
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
