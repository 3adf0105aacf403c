"""Codes on the clock of the units, lazily spoken frames, and windows that overlap."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinywave.vocoder_inputs_tinywave import (
    check_durations,
    check_units,
    codes_at_frames,
    lengths_of,
    nearest_index,
    overlapping_windows,
    spoken_frames,
    window_to_tensors,
    with_predicted_durations,
)


def test_timed_codes_are_held_for_their_time():
    """The clip of the golden numbers: 228 unit, 114 pitch and 10 style frames."""
    ones = torch.ones(228, dtype=torch.long)
    pitch, style = torch.randint(64, (114,)), torch.randint(100, (10,))
    assert codes_at_frames("pitch", pitch, ones, 64, 0.5).tolist() == [int(pitch[frame // 2]) for frame in range(228)]
    assert codes_at_frames("style", style, ones, 100, 0.04).tolist() == [
        int(style[frame // 25]) for frame in range(228)
    ]


def test_the_last_code_is_held_where_the_stream_is_one_short():
    ones = torch.ones(5, dtype=torch.long)
    assert codes_at_frames("pitch", [3, 4], ones, 8, 0.5).tolist() == [3, 3, 4, 4, 4]


def test_one_code_a_unit_is_repeated_with_it():
    durations = torch.tensor([2, 1, 3])
    assert codes_at_frames("pitch", [5, 6, 7], durations, 8, 0.5).tolist() == [5, 5, 6, 7, 7, 7]
    assert codes_at_frames("style", 2, durations, 3, 0.04).tolist() == [2] * 6
    assert codes_at_frames("style", None, durations, 0, 0.04) is None


@pytest.mark.parametrize(
    ("codes", "durations", "count", "message"),
    [
        (None, [1, 1], 8, "Found no pitch; this vocoder speaks with 8 pitch codes"),
        ([1, 2], [1, 1], 0, "no pitch input, leave them out"),
        ([1, 8], [1, 1], 8, "between 1 and 8; this vocoder knows 0 to 7"),
        ([1, -1], [1, 1], 8, "between -1 and 1"),
        ([[1, 2]], [1, 1], 8, "one sequence of codes"),
        ([], [1, 1], 8, "one sequence of codes"),
        ([1, 2], [2, 1, 1], 8, "Found 2 pitch codes for 3 units of 4 frames; expected one code a unit"),
        ([1, 2], [1] * 10, 8, r"where each unit is one frame, 5.0 \(one more or less\)"),
    ],
)
def test_codes_that_do_not_fit_are_refused(codes, durations, count, message):
    with pytest.raises(ValueError, match=message):
        codes_at_frames("pitch", codes, torch.tensor(durations), count, 0.5)


def test_lengths_are_counted_or_given():
    units = torch.tensor([[4, 5, -1], [6, 7, 8]])
    assert lengths_of(units, None).tolist() == [2, 3]
    assert lengths_of(units, torch.tensor([1, 1])).tolist() == [1, 1]


def test_nearest_index_is_the_frame_under_the_centre():
    """25 Hz under 40 Hz, counted in milliseconds."""
    expected = [next(unit for unit in range(99) if frame * 25 + 12.5 < (unit + 1) * 40) for frame in range(64)]
    assert nearest_index(64, 25 / 40).tolist() == expected


@given(st.integers(0, 60), st.integers(1, 12), st.integers(0, 15))
@settings(max_examples=60)
def test_windows_hold_every_frame_once_with_its_context(count, chunk, context):
    start = 0
    for window, begin, size in overlapping_windows(iter(range(count)), chunk, context):
        assert size == min(chunk, count - start)
        assert window == list(range(max(0, start - context), min(count, start + size + context)))
        assert window[begin : begin + size] == list(range(start, start + size))
        start += size
    assert start == count


def _durations_from_neighbours(units: torch.LongTensor) -> torch.LongTensor:
    """A stand-in with the reach of the real predictors: each unit's duration depends on two on each side."""
    padded = torch.nn.functional.pad(units, (2, 2))
    return (padded.unfold(1, 5, 1) * torch.tensor([1, 3, 1, 2, 5])).sum(-1) % 4 + 1


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30))
@settings(max_examples=40)
def test_durations_predicted_on_the_way_are_those_of_the_whole(units):
    whole = _durations_from_neighbours(torch.tensor([units]))[0].tolist()
    streams = [("pitch", [unit % 3 for unit in units], 3), ("style", 1, 2), ("tilt", None, 0)]
    frames = list(spoken_frames(units, None, streams, 10, _durations_from_neighbours))
    expected = [[u, u % 3, 1, None] for u, duration in zip(units, whole, strict=True) for _ in range(duration)]
    assert frames == expected


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(0, 30))
@settings(max_examples=40)
def test_durations_go_on_after_units_that_are_past(units, num_past):
    rows = [(unit, None) for unit in units]
    whole = _durations_from_neighbours(torch.tensor([units]))[0].tolist()
    found = list(with_predicted_durations(iter(rows[num_past:]), _durations_from_neighbours, past=rows[:num_past]))
    assert found == list(zip(rows, whole, strict=True))[num_past:]


def test_optional_codes_may_be_left_out():
    ones = torch.ones(2, dtype=torch.long)
    assert codes_at_frames("pitch", None, ones, 8, 0.5, is_optional=True) is None
    frames = spoken_frames([1, 2], [1, 2], [("pitch", None, 5)], 10, _durations_from_neighbours, is_optional=True)
    assert list(frames) == [[1, None], [2, None], [2, None]]
    with pytest.raises(ValueError, match="no pitch input, leave them out"):
        codes_at_frames("pitch", [1, 2], ones, 0, 0.5, is_optional=True)
    with pytest.raises(ValueError, match="between 9 and 9"):
        codes_at_frames("pitch", 9, ones, 8, 0.5, is_optional=True)


def test_units_are_read_no_further_than_needed():
    read = []

    def source():
        for unit in range(9):
            read.append(unit)
            yield unit

    frames = spoken_frames(source(), None, [], 10, _durations_from_neighbours)
    next(frames)
    assert read == [0, 1, 2]
    frames = spoken_frames(source(), iter([1] * 9), [], 10, _durations_from_neighbours)
    next(frames)
    assert read == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("units", "durations", "pitch", "message"),
    [
        ([1, 10], None, [0, 0], "knows 0 to 9"),
        ([1, 2], [1], [0, 0], "at least 1 frame"),
        ([1, 2], [1, 0], [0, 0], "at least 1 frame"),
        ([1, 2], [1, 1], [0], "fewer pitch codes than units"),
        ([1, 2], [1, 1], [0, 5], "between 5 and 5"),
        ([1, 2], [1, 1], None, "Found no pitch"),
    ],
)
def test_streams_that_do_not_fit_are_refused_when_read(units, durations, pitch, message):
    with pytest.raises(ValueError, match=message):
        list(spoken_frames(units, durations, [("pitch", pitch, 5)], 10, _durations_from_neighbours))


def test_windows_become_tensors():
    units, pitch, style = window_to_tensors([[1, 2, None], [3, 4, None]], torch.device("cpu"))
    assert units.tolist() == [[1, 3]] and pitch.tolist() == [[2, 4]] and style is None


def test_checked_units_and_durations_are_tensors():
    units = check_units([3, 4], 5)
    assert units.tolist() == [3, 4]
    assert check_durations([1, 2], units).tolist() == [1, 2]
