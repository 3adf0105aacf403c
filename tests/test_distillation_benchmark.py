"""The benchmark of distillation: its variants compute the same loss, run in processes of their own, and add up."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tinywave.benchmarks.distillation import (
    LABELS,
    NO_GPU,
    compare_with_targets,
    measure_gpu_rows,
    measure_variants,
    memory_ratio,
    records_to_row,
    time_ratio,
)
from tinywave.benchmarks.distillation_steps import (
    ATTENTION,
    CHUNKED_LOGIT_KD,
    EAGER_ATTENTION,
    FULL_LOGIT_KD,
    HIDDEN,
    LOGIT_KD_VARIANTS,
    LOGITS,
    SIZES,
    STEP_VARIANTS,
    is_out_of_memory,
    make_step,
)

TINY = SIZES["tiny"]


def loss_of(variant: str, seq_len: int = 16) -> float:
    return make_step(variant, seq_len, TINY)().item()


def test_eager_maps_give_the_loss_of_rebuilt_rows():
    assert loss_of(EAGER_ATTENTION) == pytest.approx(loss_of(ATTENTION), rel=1e-5)


def test_chunks_give_the_loss_of_all_logits():
    assert loss_of(CHUNKED_LOGIT_KD) == pytest.approx(loss_of(FULL_LOGIT_KD), rel=1e-5)


def test_each_term_adds_to_the_loss():
    assert 0 < loss_of(LOGITS) < loss_of(HIDDEN) < loss_of(ATTENTION)


def test_a_step_of_every_length_has_as_many_tokens_and_can_be_repeated():
    for variant in (ATTENTION, CHUNKED_LOGIT_KD):
        step = make_step(variant, TINY.seq_lens[-1], TINY)
        assert torch.equal(step(), step())


@pytest.mark.parametrize(
    ("name", "counts"), [("full", [277_650_432, 84_943_872]), ("published", [6_742_609_920, 2_290_176_000])]
)
def test_sizes_have_the_stated_parameters(name, counts):
    with torch.device("meta"):
        models = [AutoModelForCausalLM.from_config(config) for config in SIZES[name].configs()]
    assert [model.num_parameters() for model in models] == counts


def test_lengths_and_variants_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="no whole rows of 48"):
        make_step(LOGITS, 48, TINY)
    with pytest.raises(ValueError, match="Unknown variant 'all'"):
        make_step("all", 16, TINY)


def test_an_allocation_beyond_the_machine_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_every_measurement_is_a_process_that_reports_time_and_memory():
    records = measure_variants([ATTENTION], 16, "tiny", num_pairs=1)
    (record,) = records[ATTENTION]
    assert record["loss"] == pytest.approx(loss_of(ATTENTION), rel=1e-5)
    assert record["seconds"] > 0 and record["peak_mb"] >= 0


def row(variant, seq_len, seconds, peak_mb):
    return records_to_row(variant, seq_len, [{"seconds": value, "peak_mb": peak_mb} for value in seconds])


def test_ratios_are_paired_by_turn():
    first, second = row(HIDDEN, 1024, [2.0, 30.0, 2.2], 60.0), row(LOGITS, 1024, [1.0, 10.0, 2.0], 50.0)
    assert time_ratio(first, second) == 2.0
    assert memory_ratio(first, second) == 1.2
    assert memory_ratio(row(ATTENTION, 1024, [1.0], 62.0), row(EAGER_ATTENTION, 1024, [1.0], 80.0), base=first) == 0.1
    assert memory_ratio(first, second, base=first) is None


def test_what_memory_did_not_suffice_for_has_no_numbers():
    missing = records_to_row(EAGER_ATTENTION, 2048, [{"not_measured": "out of memory"}])
    assert (missing["cpu_seconds"], missing["peak_mb"]) == (None, None)
    assert time_ratio(missing, row(LOGITS, 2048, [1.0], 1.0)) is None
    targets = compare_with_targets([missing])
    assert [target["met"] for target in targets] == [None] * len(targets)


def test_targets_are_met_or_not():
    rows = [
        row(LOGITS, 1024, [1.0], 100.0),
        row(HIDDEN, 1024, [1.0], 101.0),
        row(ATTENTION, 1024, [1.04], 105.0),
        row(EAGER_ATTENTION, 1024, [2.0], 141.0),
        row(ATTENTION, 2048, [1.1], 205.0),
        row(FULL_LOGIT_KD, 2048, [1.0], 1000.0),
        row(CHUNKED_LOGIT_KD, 2048, [1.2], 190.0),
    ]
    values = [(round(target["value"], 3), target["met"]) for target in compare_with_targets(rows)]
    assert values == [
        (1.04, True), (1.05, True), (1.923, True), (0.1, True), (1.952, False), (190.0, True), (1.2, False),
    ]  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is said where there is no GPU")
def test_without_a_gpu_its_rows_say_so():
    rows = measure_gpu_rows()
    assert [row["variant"] for row in rows] == list(LABELS) == [*STEP_VARIANTS, *LOGIT_KD_VARIANTS]
    assert {row["not_measured"] for row in rows} == {NO_GPU}
