"""sBLIMP as a metric of `evaluate`; what it computes is in `tinywave.eval`."""

import evaluate

from tinywave.eval import metric_inputs

_DESCRIPTION = """\
sBLIMP: a spoken sentence and the same sentence with one rule of grammar broken, in several voices. A pair counts 1 if
the model assigns the grammatical one the higher likelihood, 0.5 for a tie and 0 otherwise. Voices of a (type, subtype,
id) are averaged first, then these items, as in the ZeroSpeech 2021 challenge. Speech is a list of raw units (one per
frame, with repeats) or, for a model with pitch and style streams, a dict of the lists "units", "pitch" and "style".
"""

_KWARGS_DESCRIPTION = """
Args:
    id, voice (lists of `str`): of the pair; no (part, subtype, id, voice) twice.
    group (list of `str`): items of one group are resampled together; if in doubt, use the id.
    part, subtype (lists of `str`): type and subtype of the rule.
    positive, negative (lists): the grammatical and the ungrammatical sentence, as speech.
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
    accuracy, n (items), standard_error, ci95 (bootstrap over groups), accuracy_by_part (type -> the same four),
    num_pairs and convention.

Examples:

    >>> import evaluate
    >>> sblimp = evaluate.load("eval/metrics/sblimp", "scores")
    >>> result = sblimp.compute(
    ...     id=["1", "1", "1", "2"],
    ...     voice=["A", "B", "A", "A"],
    ...     group=["1", "1", "1", "2"],
    ...     part=["agreement", "agreement", "agreement", "islands"],
    ...     subtype=["verb", "verb", "noun", "wh"],
    ...     positive_sum=[-40.0, -42.0, -50.0, -61.0],
    ...     positive_count=[20, 20, 25, 30],
    ...     negative_sum=[-44.0, -40.0, -55.0, -60.0],
    ...     negative_count=[20, 20, 25, 30],
    ... )
    >>> result["accuracy"], result["n"]
    (0.5, 3)
    >>> {name: (part["accuracy"], part["n"]) for name, part in result["accuracy_by_part"].items()}
    {'agreement': (0.75, 2), 'islands': (0.0, 1)}

    With a model:

    >>> from tinywave.eval.metric_inputs import pairs_to_columns
    >>> from tinywave.eval.suites import read_suite
    >>> pairs = read_suite("assets/suites/syntactic.parquet")[:4]
    >>> sblimp = evaluate.load("eval/metrics/sblimp")
    >>> result = sblimp.compute(**pairs_to_columns("sblimp", pairs), model="assets/teacher")
    >>> result["n"], result["convention"]["grouping"]
    (4, 'voices of a (type, subtype, id) averaged, then the mean over these')
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
class Sblimp(evaluate.Metric):
    """sBLIMP."""

    def _info(self):
        return evaluate.MetricInfo(
            module_type="metric",
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=metric_inputs.module_features("sblimp", self.config_name),
            reference_urls=["https://arxiv.org/abs/2011.11588"],
        )

    def add_batch(self, **columns):
        """Adds items, one a row of each column."""
        super().add_batch(**metric_inputs.columns_to_batch(self.features, columns))

    def add(self, **item):
        """Adds one item."""
        self.add_batch(**{name: [value] for name, value in item.items()})

    def _compute(self, **inputs):
        return metric_inputs.compute_accuracy("sblimp", **inputs)
