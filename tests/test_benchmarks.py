"""The paired timer on functions whose cost is known in advance, without depending on the machine's speed."""

import time

import pytest

from tinywave.benchmarks import pairs
from tinywave.benchmarks.pairs import time_pairs


@pytest.fixture
def clock(monkeypatch):
    """A clock that the timed functions move by hand."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert pairs.time is time
    return now


def test_ratio_and_medians(clock):
    calls = []

    def work(name, seconds):
        def run():
            calls.append(name)
            clock[0] += seconds

        return run

    timing = time_pairs(work("A", 2.0), work("B", 5.0), num_pairs=3)
    assert (timing.first_seconds, timing.second_seconds, timing.ratio) == (2.0, 5.0, 2.5)
    assert timing.ratio_quartiles == (2.5, 2.5)
    assert calls == ["A", "B", "A", "B", "B", "A", "A", "B"]


def test_a_load_that_hits_one_pair_does_not_move_the_ratio(clock):
    load = iter([1.0, 1.0, 1.0, 1.0, 10.0, 10.0, 1.0, 1.0])

    def work(seconds):
        def run():
            clock[0] += seconds * next(load)

        return run

    timing = time_pairs(work(1.0), work(3.0), num_pairs=3)
    assert timing.ratio == 3.0


def test_one_pair_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        time_pairs(lambda: None, lambda: None, num_pairs=1)
