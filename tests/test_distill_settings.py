"""The trainer with models of other shapes, packed rows, streams, other losses and teachers, and what it logs."""

import json

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.distill_trainer import LOSS_NAMES, DistillationTrainer
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.training.arguments import DistillationArguments
from tinywave.training.callbacks import LOSS_CURVE_FILE
from tinywave.training.layer_map import LayerMap
from tinywave.training.logits_losses import DIVERGENCES
from tinywave.training.losses import HIDDEN_LOSSES
from tinywave.training.teacher_targets import OnlineTeacher

LAYER_MAP = LayerMap.from_pairs([(1, 0), (4, 1)])
# Ids 0-3 special, 4-15 text, 16 and 17 markers, 18-27 units, 28-33 pitch, 34-37 style, 38 and 39 filler.
STREAMS = dict(text_offset=4, text_vocab_size=16, text_marker_id=16, speech_marker_id=17, unit_offset=18, num_units=10,
               pitch_offset=28, num_pitch_tokens=6, style_offset=34, num_style_tokens=4)  # fmt: skip
SIZES = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4,
             max_position_embeddings=64, pad_token_id=0)  # fmt: skip


def make_model(seed=0, with_streams=False, **changes):
    torch.manual_seed(seed)
    settings = SIZES | changes
    settings.setdefault("num_key_value_heads", settings["num_attention_heads"])
    if with_streams:
        model = TinyWaveForCausalLM(TinyWaveConfig(**settings, **STREAMS))
    else:
        model = LlamaForCausalLM(LlamaConfig(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # far from uniform attention and from uniform predictions
    return model


def make_student(**changes):
    return make_model(seed=1, **{"num_hidden_layers": 2} | changes)


def make_data(number=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 20, (number,), generator=generator).tolist()
    return [{"input_ids": torch.randint(1, 40, (n,), generator=generator).tolist()} for n in lengths]


def collate(items):
    longest = max(len(item["input_ids"]) for item in items)
    rows = [F.pad(torch.tensor(item["input_ids"]), (0, longest - len(item["input_ids"]))) for item in items]
    ids = torch.stack(rows)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": ids.masked_fill(ids == 0, -100)}


def make_trainer(folder, student=None, teacher=None, teacher_source=None, **settings):
    settings = dict(use_cpu=True, disable_tqdm=True, report_to="none", max_steps=4, learning_rate=1e-2,
                    logging_steps=1, save_strategy="no", per_device_train_batch_size=4) | settings  # fmt: skip
    return DistillationTrainer(
        model=make_student() if student is None else student,
        teacher_model=make_model() if teacher is None and teacher_source is None else teacher,
        layer_map=LAYER_MAP,
        args=DistillationArguments(output_dir=str(folder), **settings),
        teacher_source=teacher_source,
        train_dataset=make_data(),
        data_collator=collate,
    )


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def evaluated(trainer):
    """The terms over the training data: random tokens have nothing in common with other random tokens."""
    metrics = trainer.evaluate(trainer.train_dataset)
    return {name: value for name, value in metrics.items() if name.removeprefix("eval_") in LOSS_NAMES}


SHAPES = {
    "fewer heads": dict(num_attention_heads=2, head_dim=8),
    "more heads": dict(num_attention_heads=8, head_dim=4),
    "grouped keys": dict(num_key_value_heads=2),
    "one key head and another width": dict(num_key_value_heads=1, hidden_size=24, head_dim=10),
    "other heads, grouped keys, width and feed-forward": dict(
        num_attention_heads=6, num_key_value_heads=3, hidden_size=48, intermediate_size=64
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_term_falls_for_a_student_of_another_shape(tmp_path, shape):
    trainer = make_trainer(tmp_path, make_student(**SHAPES[shape]), max_steps=60, hidden_weight=10.0)
    before = evaluated(trainer)
    trainer.train()
    after = evaluated(trainer)
    assert len(before) == 4
    for name, value in before.items():
        assert value > 0.01, name
        assert after[name] < 0.9 * value, name


def test_a_grouped_teacher_teaches_an_ungrouped_student(tmp_path):
    trainer = make_trainer(tmp_path, teacher=make_model(num_key_value_heads=2), max_steps=60, hidden_weight=10.0)
    before = evaluated(trainer)
    trainer.train()
    assert all(value < 0.9 * before[name] for name, value in evaluated(trainer).items())


@pytest.mark.parametrize("attention_loss", ["rows", "relations"])
def test_a_copy_of_the_teacher_is_at_no_distance_in_any_loss(tmp_path, attention_loss):
    teacher = make_model()
    for divergence in DIVERGENCES:
        for hidden_loss in HIDDEN_LOSSES:
            copy = make_model()
            trainer = DistillationTrainer(
                copy,
                teacher,
                LayerMap.last(5, 5),
                DistillationArguments(
                    output_dir=str(tmp_path),
                    use_cpu=True,
                    report_to="none",
                    disable_tqdm=True,
                    logits_loss=divergence,
                    hidden_loss=hidden_loss,
                    attention_loss=attention_loss,
                ),
                eval_dataset=make_data(6),
                data_collator=collate,
            )
            metrics = trainer.evaluate()
            for name in LOSS_NAMES[1:]:
                assert metrics[f"eval_{name}"] == pytest.approx(0, abs=1e-5)


def test_relations_of_given_heads_are_another_loss_than_the_default(tmp_path):
    values = [
        evaluated(make_trainer(tmp_path, attention_loss="relations", num_relation_heads=heads))["eval_attention_loss"]
        for heads in (None, 4, 8)
    ]
    assert values[0] == values[1] != values[2]


def test_relation_heads_that_fit_one_model_only_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is 16, which does not divide the 40 numbers of the queries of the student"):
        make_trainer(tmp_path, make_student(head_dim=10), attention_loss="relations", num_relation_heads=16)


def test_blocks_of_a_term_are_chosen_from_the_map(tmp_path):
    both = evaluated(make_trainer(tmp_path))
    one, other = (evaluated(make_trainer(tmp_path, hidden_layers=[block], attention_layers=[1 - block]))
                  for block in (0, 1))  # fmt: skip
    for name in ("eval_hidden_loss", "eval_attention_loss"):
        assert one[name] != other[name]
        assert one[name] + other[name] == pytest.approx(2 * both[name], rel=1e-5)


def test_blocks_outside_the_map_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Blocks \[2\] are to be aligned, but the layer map names .* \[0, 1\] only"):
        make_trainer(tmp_path, hidden_layers=[0, 2])


def documents(lengths=(7, 5, 9)):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(1, 40, (n,), generator=generator) for n in lengths]


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("shape", ["same heads", "fewer heads"])
def test_a_packed_row_is_its_documents(tmp_path, with_mask, shape):
    """Documents packed into one row, told apart by `position_ids`, give the sums of a batch that pads them."""
    trainer = make_trainer(tmp_path, make_student(**SHAPES.get(shape, {})))
    trainer.model.eval()
    parts = documents()
    labels = torch.cat([part.clone().index_fill(0, torch.tensor([0]), -100) for part in parts])
    packed = {
        "input_ids": torch.cat(parts)[None],
        "position_ids": torch.cat([torch.arange(len(part)) for part in parts])[None],
        "labels": labels[None],
    }
    if with_mask:
        packed["attention_mask"] = torch.ones_like(packed["input_ids"])
    padded = collate([{"input_ids": part.tolist()} for part in parts])
    with torch.no_grad():
        found, expected = trainer._loss_and_sums(packed)[1], trainer._loss_and_sums(padded)[1]
    assert expected[:4].min() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_a_block_diagonal_mask_is_followed_too(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.model.eval()
    parts = documents()
    document = torch.cat([torch.full((len(part),), number) for number, part in enumerate(parts)])
    allowed = (document[:, None] == document) & torch.ones(len(document), len(document)).tril().bool()
    batch = {"input_ids": torch.cat(parts)[None], "labels": torch.cat(parts)[None],
             "position_ids": torch.cat([torch.arange(len(part)) for part in parts])[None]}  # fmt: skip
    with torch.no_grad():
        expected = trainer._loss_and_sums(batch)[1]
        found = trainer._loss_and_sums(batch | {"attention_mask": allowed[None, None]})[1]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def stream_sums(folder, **settings):
    """Sums of all terms over one batch whose targets are of every stream."""
    student, teacher = make_student(with_streams=True), make_model(with_streams=True)
    trainer = make_trainer(folder, student, teacher, **settings)
    trainer.model.eval()
    with torch.no_grad():
        return trainer._loss_and_sums(collate(make_data()))[1]


def test_weights_of_streams_split_every_term(tmp_path):
    names = ("text", "unit", "pitch", "style")
    everything = stream_sums(tmp_path)
    alone = {}
    for name in names:
        alone[name] = stream_sums(tmp_path, stream_weights={other: float(other == name) for other in names})
    others = stream_sums(tmp_path, stream_weights=dict.fromkeys(names, 0.0))
    parts = [sums - others for sums in alone.values()]
    assert all((part[:4] > 0).all() for part in parts)
    torch.testing.assert_close((sum(parts) + others)[:4], everything[:4], rtol=1e-5, atol=1e-4)
    doubled = stream_sums(tmp_path, stream_weights={"pitch": 2.0})
    torch.testing.assert_close((doubled - everything)[:4], parts[2][:4], rtol=1e-4, atol=1e-3)


def test_temperatures_of_streams_change_the_logits_term_alone(tmp_path):
    plain = stream_sums(tmp_path, temperature=2.0)
    same = stream_sums(tmp_path, temperature=1.0, stream_temperatures={"text": 2.0, "unit": 2.0})
    hotter = stream_sums(tmp_path, temperature=2.0, stream_temperatures={"unit": 4.0})
    for other in (same, hotter):
        assert other[1] != plain[1]
        assert other[[0, 2, 3]].equal(plain[[0, 2, 3]])


def test_a_restricted_logits_term_compares_within_the_stream(tmp_path):
    """A batch of unit targets only: the term is that of both models cut down to the unit ids."""
    student, teacher = make_student(with_streams=True), make_model(with_streams=True)
    trainer = make_trainer(tmp_path, student, teacher, restrict_logits_to_stream=True, temperature=1.0)
    ids = torch.randint(18, 28, (3, 12), generator=torch.Generator().manual_seed(0))
    trainer.model.eval()
    with torch.no_grad():
        found = trainer._loss_and_sums({"input_ids": ids, "labels": ids})[1]
        logs = [model(ids).logits[:, :-1, 18:28].double().log_softmax(-1) for model in (student, teacher)]
        whole = F.cross_entropy(student(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    expected = (logs[1].exp() * (logs[1] - logs[0])).sum()
    torch.testing.assert_close(found[1].double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(found[0], whole, rtol=1e-5, atol=0)


def test_weights_of_streams_apply_without_a_teacher(tmp_path):
    settings = dict(logits_weight=0.0, hidden_weight=0.0, attention_weight=0.0)
    student = make_student(with_streams=True)
    trainer = make_trainer(tmp_path, student, None, **settings, stream_weights={"unit": 0.0})
    assert trainer.teacher is None
    batch = collate(make_data())
    targets = batch["labels"][:, 1:]
    kept = (targets != -100) & ~((targets >= 18) & (targets < 28))
    student.eval()
    with torch.no_grad():
        logits = student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        expected = F.cross_entropy(logits[kept], targets[kept], reduction="sum") / (targets != -100).sum()
        torch.testing.assert_close(trainer.compute_loss(student, batch), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("settings", "with_streams", "message"),
    [
        (dict(stream_weights={"units": 1.0}), True, r"no streams \['units'\]; its streams are \['pitch', 'style'"),
        (dict(stream_temperatures={"text": 1.0}), False, "LlamaConfig names no streams"),
        (dict(restrict_logits_to_stream=True), False, "LlamaConfig names no streams"),
    ],
)
def test_streams_the_model_does_not_have_are_refused(tmp_path, settings, with_streams, message):
    models = make_student(with_streams=with_streams), make_model(with_streams=with_streams)
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, *models, **settings)


def test_any_source_of_targets_can_teach(tmp_path):
    """A source that is not the trainer's own gives the same training as the model it asks."""
    online = make_trainer(tmp_path)
    source = OnlineTeacher(make_model(), online.args, LAYER_MAP)
    offline = make_trainer(tmp_path, teacher_source=source)
    online.train(), offline.train()
    assert offline.teacher is source
    expected = online.model.state_dict()
    assert all(tensor.equal(expected[name]) for name, tensor in offline.model.state_dict().items())


def test_a_source_refuses_terms_it_cannot_serve(tmp_path):
    class WithoutAttention(OnlineTeacher):
        def check(self, arguments, layer_map):
            if arguments.attention_weight:
                raise ValueError("no attention in this source")

    arguments = DistillationArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="no attention in this source"):
        make_trainer(tmp_path, teacher_source=WithoutAttention(make_model(), arguments, LAYER_MAP))


def test_two_teachers_are_refused(tmp_path):
    source = OnlineTeacher(make_model(), DistillationArguments(output_dir=str(tmp_path), use_cpu=True), LAYER_MAP)
    with pytest.raises(ValueError, match="both `teacher_model` and `teacher_source`"):
        make_trainer(tmp_path, teacher=make_model(), teacher_source=source)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_norms_are_those_of_the_terms_and_disturb_nothing(tmp_path, checkpointing):
    weights = dict(cross_entropy_weight=0.5, logits_weight=0.7, hidden_weight=1.1, attention_weight=1.3)
    settings = dict(max_steps=2, logging_steps=2, max_grad_norm=0.0, activation_checkpointing=checkpointing, **weights)
    measured = make_trainer(tmp_path, log_gradient_norms=True, **settings)
    plain = make_trainer(tmp_path, **settings)
    measured.train(), plain.train()
    expected = plain.model.state_dict()
    assert all(tensor.equal(expected[name]) for name, tensor in measured.model.state_dict().items())
    found = {name: logged(measured, f"{name}_gradient_norm")
             for name in ("cross_entropy", "logits", "hidden", "attention")}  # fmt: skip
    assert all(len(values) == 1 and values[0] > 0 for values in found.values())
    # With one term alone its gradient is the whole gradient, which the training loop measures by itself.
    for name in ("logits", "hidden", "attention"):
        only = {f"{other}_weight": weights[f"{other}_weight"] * (other == name) for other in found}
        alone = make_trainer(tmp_path, log_gradient_norms=True, max_steps=1, **only)
        alone.train()
        assert logged(alone, f"{name}_gradient_norm") == pytest.approx(logged(alone, "grad_norm"), rel=1e-5)


def test_throughput_is_logged(tmp_path):
    trainer = make_trainer(tmp_path, peak_tflops=1e-3, gradient_accumulation_steps=2)
    trainer.train()
    assert len(logged(trainer, "tokens_per_second")) == len(logged(trainer, "model_flops_utilisation")) == 4
    ratios = [share / speed for share, speed in zip(logged(trainer, "model_flops_utilisation"),
                                                    logged(trainer, "tokens_per_second"), strict=True)]  # fmt: skip
    # Per token: 6 FLOPs a weight of the student and 2 of its teacher, and attention over at most 19 positions.
    block = 4 * 32 * 32 + 3 * 32 * 48
    weights = 6 * (2 * block + 32 * 40) + 2 * (5 * block + 32 * 40)
    attention = 19 * 4 * 32 * (3 * 2 + 5)
    assert all(weights < ratio * 1e9 <= (weights + attention) * (1 + 1e-5) for ratio in ratios)


def test_without_a_peak_no_utilisation_is_claimed(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train()
    assert logged(trainer, "model_flops_utilisation") == []


def test_the_loss_curve_is_drawn_where_asked(tmp_path):
    make_trainer(tmp_path / "without").train()
    assert not (tmp_path / "without" / LOSS_CURVE_FILE).exists()
    make_trainer(tmp_path / "with", plot_loss_curve=True).train()
    assert (tmp_path / "with" / LOSS_CURVE_FILE).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_settings_can_be_written_as_json(tmp_path):
    arguments = DistillationArguments(output_dir=str(tmp_path), use_cpu=True, stream_weights='{"unit": 2.0}',
                                      stream_temperatures={"text": 1.5}, hidden_layers=[0])  # fmt: skip
    assert arguments.stream_weights == {"unit": 2.0}
    written = json.loads(arguments.to_json_string())
    assert written["stream_temperatures"] == {"text": 1.5}
    assert written["hidden_layers"] == [0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(logits_loss="l2"), "`logits_loss` must be one of"),
        (dict(attention_loss="maps"), "`attention_loss` must be one of"),
        (dict(jsd_beta=1.0), "`jsd_beta` must lie between 0 and 1; found 1.0"),
        (dict(num_relation_heads=0), "`num_relation_heads` must be at least 1; found 0"),
        (dict(peak_tflops=-1.0), "`peak_tflops` must be a positive number"),
        (dict(stream_weights={"unit": -1.0}), "`stream_weights` of 'unit' must be finite and at least 0; found -1.0"),
        (dict(stream_temperatures={"unit": 0.0}), "`stream_temperatures` of 'unit' must be finite and above 0"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        DistillationArguments(output_dir=str(tmp_path), use_cpu=True, **settings)
