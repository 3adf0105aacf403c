"""What every vocoder is given: units, durations and codes, checked, brought to one clock, and cut into windows.

Letters in shapes: B batch, U units, T frames at the rate of the units (25 Hz), P codes of one stream.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

DURATION_RADIUS = 2  # units on each side that a predicted duration depends on


def length_mask(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """Lengths `(B,)` -> float mask `(B, size, 1)`, 1 on real positions."""
    return (torch.arange(size, device=lengths.device)[None] < lengths[:, None]).unsqueeze(-1).float()


def lengths_of(units: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """Real units of each row of `(B, U)`: `lengths`, by default all that are not -1."""
    return (units >= 0).sum(1) if lengths is None else lengths


def nearest_index(count: int, ratio: float, device: torch.device | None = None) -> torch.LongTensor:
    """Index of the slower frame on which the centre of each of `count` faster frames lies; `ratio` slow / fast."""
    return ((torch.arange(count, device=device, dtype=torch.float64) + 0.5) * ratio).long()


def check_units(units, num_units: int) -> torch.LongTensor:
    """Return units `(U,)` as a tensor; `ValueError` for none, for another shape and for units out of range."""
    units = torch.as_tensor(units, dtype=torch.long)
    if units.dim() != 1 or not len(units):
        raise ValueError(f"Found units of shape {tuple(units.shape)}; expected one sequence of at least one unit.")
    low, high = int(units.min()), int(units.max())
    if low < 0 or high >= num_units:
        raise ValueError(
            f"Found units between {low} and {high}; this vocoder knows 0 to {num_units - 1}. "
            "Convert token ids to units first (subtract the unit offset of the language model)."
        )
    return units


def check_durations(durations, units: torch.Tensor) -> torch.LongTensor:
    """Return durations `(U,)` as a tensor on the device of `units`; `ValueError` where they do not fit the units."""
    durations = torch.as_tensor(durations, dtype=torch.long, device=units.device)
    if durations.shape != units.shape or int(durations.min()) < 1:
        raise ValueError(
            f"Found durations of shape {tuple(durations.shape)} for {len(units)} units; expected one duration of "
            "at least 1 frame for each unit."
        )
    return durations


def check_stream(name: str, codes, num_codes: int, is_optional: bool = False) -> None:
    """Raise `ValueError` where codes are missing and not optional, or given to a vocoder without such codes."""
    if codes is None and num_codes and not is_optional:
        raise ValueError(f"Found no {name}; this vocoder speaks with {num_codes} {name} codes, give it some.")
    if codes is not None and not num_codes:
        raise ValueError(f"Found {name} codes; this vocoder has no {name} input, leave them out.")


def codes_at_frames(
    name: str, codes, durations: torch.LongTensor, num_codes: int, ratio: float, is_optional: bool = False
) -> torch.LongTensor | None:
    """Codes of one utterance -> the code in force at each frame of its units.

    Args:
        name: of the stream, for errors.
        codes: one code a unit (`(U,)`); where all durations are 1 also codes at a rate of their own; a single code;
            None for a stream that the vocoder does not have.
        durations (`(U,)`): frames of each unit.
        num_codes: how many codes there are, 0 where the vocoder has no such stream.
        ratio: rate of the codes over that of the units (0.5 for pitch, 0.04 for style).
        is_optional (default False): whether a vocoder that has the stream also speaks without it.

    Returns:
        `(durations.sum(),)`, or None where the stream is not there.

    Raises:
        ValueError: codes that are missing, not expected, out of range, or of another length.
    """
    check_stream(name, codes, num_codes, is_optional)
    if codes is None:
        return None
    codes = torch.as_tensor(codes, dtype=torch.long, device=durations.device)
    if codes.dim() > 1 or not codes.numel():
        raise ValueError(f"Found {name} of shape {tuple(codes.shape)}; expected one sequence of codes, or one code.")
    if int(codes.min()) < 0 or int(codes.max()) >= num_codes:
        raise ValueError(
            f"Found {name} codes between {int(codes.min())} and {int(codes.max())}; this vocoder knows 0 to "
            f"{num_codes - 1}."
        )
    num_frames = int(durations.sum())
    if codes.dim() == 0:
        return codes.expand(num_frames)
    if len(codes) == len(durations):
        return torch.repeat_interleave(codes, durations)
    if int(durations.max()) > 1 or abs(len(codes) - num_frames * ratio) > 1:
        raise ValueError(
            f"Found {len(codes)} {name} codes for {len(durations)} units of {num_frames} frames; expected one code a "
            f"unit or, where each unit is one frame, {num_frames * ratio:.1f} (one more or less)."
        )
    return codes[nearest_index(num_frames, ratio, codes.device).clamp(max=len(codes) - 1)]


def spoken_frames(
    units: Iterable[int],
    durations: Iterable[int] | None,
    streams: Sequence[tuple[str, Iterable[int] | int | None, int]],
    num_units: int,
    predict_durations: Callable[[torch.LongTensor], torch.LongTensor],
    device: torch.device | None = None,
    is_optional: bool = False,
) -> Iterator[list[int]]:
    """Yield [unit, code, ...] for each frame, reading every iterable no further than needed.

    Args:
        units, durations: read in step; without durations, those that `predict_durations((1, U)) -> (1, U)` gives, on
            the `device` of the predictor.
        streams: (name, codes in step with the units or one code for all or None, number of codes).
        is_optional (default False): whether codes that the vocoder knows may be left out.

    Raises:
        ValueError: as [`check_units`], [`check_durations`] and [`codes_at_frames`] do, when the offender is read.
    """
    for name, codes, count in streams:
        check_stream(name, codes, count, is_optional)
    sources = [iter(codes) if isinstance(codes, Iterable) else codes for _, codes, _ in streams]
    given = None if durations is None else iter(durations)

    def rows() -> Iterator[tuple[list[int], int | None]]:
        for unit in units:
            one = torch.ones(1, dtype=torch.long)
            row = [int(check_units([int(unit)], num_units))]
            for (name, _, count), source in zip(streams, sources, strict=True):
                code = next(source, None) if isinstance(source, Iterator) else source
                if source is not None and code is None:
                    raise ValueError(f"Found fewer {name} codes than units; expected one a unit.")
                row.append(None if code is None else int(codes_at_frames(name, int(code), one, count, 1.0)))
            duration = next(given, 0) if given is not None else None
            yield row, None if duration is None else int(check_durations([int(duration)], one))

    pairs = rows()
    if given is None:
        pairs = with_predicted_durations((row for row, _ in pairs), predict_durations, device)
    for row, duration in pairs:
        for _ in range(duration):
            yield row


def with_predicted_durations(
    rows: Iterator[Sequence[int | None]],
    predict_durations: Callable[[torch.LongTensor], torch.LongTensor],
    device: torch.device | None = None,
    past: Sequence[Sequence[int | None]] = (),
) -> Iterator[tuple[Sequence[int | None], int]]:
    """Yield each row with its duration, predicted from the few units around it: what the whole sequence would give.

    Args:
        rows: [unit, ...] of each unit; read `DURATION_RADIUS` units ahead.
        predict_durations: units `(1, U)`, on `device`, -> durations `(1, U)`.
        past (*optional*): the rows before the first, of which the last `DURATION_RADIUS` count.
    """
    past, ahead, ended = list(past)[-DURATION_RADIUS:], deque(), False
    while True:
        while not ended and len(ahead) <= DURATION_RADIUS:
            row = next(rows, None)
            ended = row is None
            if not ended:
                ahead.append(row)
        if not ahead:
            return
        window = torch.tensor([[row[0] for row in (*past, *ahead)]], device=device)
        duration = int(predict_durations(window)[0, len(past)])
        yield ahead[0], duration
        past = [*past, ahead.popleft()][-DURATION_RADIUS:]


def overlapping_windows(frames: Iterable, chunk: int, context: int) -> Iterator[tuple[list, int, int]]:
    """Cut frames into chunks with context: yield (window, first frame of the new chunk in it, size of the chunk).

    Every chunk but the last has `chunk` frames, every window up to `context` frames before and after its chunk.
    """
    window, begin = [], 0
    for frame in frames:
        window.append(frame)
        if len(window) == begin + chunk + context:
            yield window, begin, chunk
            passed = max(0, begin + chunk - context)
            window, begin = window[passed:], begin + chunk - passed
    while begin < len(window):
        size = min(chunk, len(window) - begin)
        yield window[: begin + size + context], begin, size
        passed = max(0, begin + size - context)
        window, begin = window[passed:], begin + size - passed


def window_to_tensors(window: Sequence[Sequence[int | None]], device: torch.device) -> list[torch.LongTensor | None]:
    """Rows of [unit, code, ...] -> units `(1, T)`, codes `(1, T)`, ..., with None for a stream that is not there."""
    columns = zip(*window, strict=True)
    return [None if column[0] is None else torch.tensor([column], device=device) for column in columns]
