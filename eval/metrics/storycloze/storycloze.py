"""sStoryCloze and tStoryCloze as a metric of `evaluate`; what it computes is in `tinywave.eval`."""

import evaluate

from tinywave.eval import metric_inputs

_DESCRIPTION = """\
StoryCloze: four sentences, and a right and a wrong fifth sentence. The wrong ending is written for the story
("spoken", sStoryCloze) or taken from another story ("topic", tStoryCloze). A story counts 1 if the model assigns the
right ending the higher likelihood, 0.5 for a tie and 0 otherwise. Context and endings can be speech or text, which
gives the directions S->S, T->T, S->T and T->S. Speech is a list of raw units (one per frame, with repeats) or, for a
model with pitch and style streams, a dict of the lists "units", "pitch" and "style".
"""

_KWARGS_DESCRIPTION = """
Args:
    id (list of `str`): of the story, unique.
    group (list of `str`): items of one group are resampled together; if in doubt, use the id.
    context (list): the first four sentences: text or speech. Empty if positive and negative contain the whole item.
    positive, negative (lists): the right and the wrong ending, all text or all speech.
    positive_sum, negative_sum, positive_count, negative_count (lists of numbers): in the configuration "scores", in
        place of positive and negative: the summed log-likelihood of each half in nats, and the number of scored
        tokens.
    scored (`str`, defaults to "item"): "item" scores context and ending, as published; "ending" scores the ending
        alone, given the context. The context adds the same value to both sums, but reduces the difference between the
        means.
    tokenizer (*optional*): of the model; required for text.
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
    accuracy, n, standard_error, ci95 (bootstrap over groups), num_pairs and convention, with "configuration",
    "direction" and "scored".

Examples:

    >>> import evaluate
    >>> storycloze = evaluate.load("eval/metrics/storycloze", "scores")
    >>> result = storycloze.compute(
    ...     id=["0", "1", "2", "3"],
    ...     group=["0", "1", "2", "3"],
    ...     positive_sum=[-240.0, -242.0, -250.0, -261.0],
    ...     positive_count=[120, 120, 125, 130],
    ...     negative_sum=[-244.0, -242.0, -255.0, -260.0],
    ...     negative_count=[120, 120, 125, 130],
    ... )
    >>> result["accuracy"], result["n"]
    (0.625, 4)

    With a model:

    >>> from transformers import AutoTokenizer
    >>> storycloze = evaluate.load("eval/metrics/storycloze", "topic")
    >>> result = storycloze.compute(
    ...     id=["0", "1"],
    ...     group=["0", "1"],
    ...     context=["A dog ran home.", "The cook cut the bread."],
    ...     positive=["It ate its food.", "Then she ate a piece."],
    ...     negative=["The ship was on the sea.", "The moon was red."],
    ...     model="assets/teacher",
    ...     tokenizer=AutoTokenizer.from_pretrained("assets/teacher"),
    ...     scored="ending",
    ... )
    >>> result["n"], result["convention"]["direction"], result["convention"]["scored"]
    (2, 'T->T', 'ending')
"""

_CITATION = r"""\
@article{hassid2023textually,
  title={Textually Pretrained Speech Language Models},
  author={Hassid, Michael and Remez, Tal and Nguyen, Tu Anh and Gat, Itai and Conneau, Alexis and Kreuk, Felix and
          Copet, Jade and Defossez, Alexandre and Synnaeve, Gabriel and Dupoux, Emmanuel and Schwartz, Roy and
          Adi, Yossi},
  journal={arXiv preprint arXiv:2305.13009},
  year={2023}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Storycloze(evaluate.Metric):
    """sStoryCloze and tStoryCloze."""

    def _info(self):
        return evaluate.MetricInfo(
            module_type="metric",
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=metric_inputs.module_features("storycloze", self.config_name),
            reference_urls=["https://arxiv.org/abs/2305.13009"],
        )

    def add_batch(self, **columns):
        """Adds items, one a row of each column."""
        super().add_batch(**metric_inputs.columns_to_batch(self.features, columns))

    def add(self, **item):
        """Adds one item."""
        self.add_batch(**{name: [value] for name, value in item.items()})

    def _compute(self, **inputs):
        result = metric_inputs.compute_accuracy("storycloze", **inputs)
        return {**result, "convention": {**result["convention"], "configuration": self.config_name}}
