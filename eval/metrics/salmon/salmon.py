"""SALMon as a metric of `evaluate`; what it computes is in `tinywave.eval`."""

import evaluate

from tinywave.eval import metric_inputs

_DESCRIPTION = """\
SALMon: a recording, and the same recording with its speaker, gender, sentiment, background or room changed in the
middle (consistency), or with a background or sentiment that does not match its words (alignment). A pair counts 1 if
the model assigns the consistent one the higher likelihood, 0.5 for a tie and 0 otherwise. The accuracy of each of the
eight parts is the mean over its pairs, and the overall accuracy is the mean over the parts. Speech is a list of raw
units (one per frame, with repeats) or, for a model with pitch and style streams, a dict of the lists "units", "pitch"
and "style".
"""

_KWARGS_DESCRIPTION = """
Args:
    id (list of `str`): of the pair; no (part, id) twice.
    group (list of `str`): items of one group are resampled together; if in doubt, use the id.
    part (list of `str`): folder of the release: "bg_alignment", "bg_all_consistency", "bg_domain_consistency",
        "gender_consistency", "rir_consistency", "sentiment_alignment", "sentiment_consistency" or
        "speaker_consistency".
    positive, negative (lists): `sample_<i>_0.wav` and `sample_<i>_1.wav`, as speech.
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
    accuracy (mean of the parts), n (pairs), standard_error, ci95 (bootstrap over the groups of each part),
    accuracy_by_part (part -> accuracy, n, standard_error, ci95), missing_parts, num_pairs and convention.

Examples:

    >>> import evaluate
    >>> salmon = evaluate.load("eval/metrics/salmon", "scores")
    >>> result = salmon.compute(
    ...     id=["0", "1", "0", "1"],
    ...     group=["0", "1", "0", "1"],
    ...     part=["rir_consistency", "rir_consistency", "speaker_consistency", "speaker_consistency"],
    ...     positive_sum=[-40.0, -42.0, -50.0, -61.0],
    ...     positive_count=[20, 20, 25, 30],
    ...     negative_sum=[-44.0, -44.0, -55.0, -60.0],
    ...     negative_count=[20, 20, 25, 30],
    ... )
    >>> {name: part["accuracy"] for name, part in result["accuracy_by_part"].items()}
    {'rir_consistency': 1.0, 'speaker_consistency': 0.5}
    >>> result["accuracy"], result["n"], len(result["missing_parts"])
    (0.75, 4, 6)

    With a model:

    >>> from tinywave.eval.metric_inputs import pairs_to_columns
    >>> from tinywave.eval.suites import read_suite
    >>> pairs = read_suite("assets/suites/speaker.parquet")[:4]
    >>> columns = pairs_to_columns("salmon", pairs) | {"part": ["speaker_consistency"] * 4}
    >>> salmon = evaluate.load("eval/metrics/salmon")
    >>> result = salmon.compute(**columns, model="assets/teacher")
    >>> list(result["accuracy_by_part"]), result["n"]
    (['speaker_consistency'], 4)
"""

_CITATION = r"""\
@article{maimon2024salmon,
  title={SALMon: A Suite for Acoustic Language Model Evaluation},
  author={Maimon, Gallil and Roth, Amit and Adi, Yossi},
  journal={arXiv preprint arXiv:2409.07437},
  year={2024}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Salmon(evaluate.Metric):
    """SALMon."""

    def _info(self):
        return evaluate.MetricInfo(
            module_type="metric",
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=metric_inputs.module_features("salmon", self.config_name),
            reference_urls=["https://arxiv.org/abs/2409.07437"],
        )

    def add_batch(self, **columns):
        """Adds items, one a row of each column."""
        super().add_batch(**metric_inputs.columns_to_batch(self.features, columns))

    def add(self, **item):
        """Adds one item."""
        self.add_batch(**{name: [value] for name, value in item.items()})

    def _compute(self, **inputs):
        return metric_inputs.compute_accuracy("salmon", **inputs)
