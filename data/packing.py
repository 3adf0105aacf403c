"""Several documents in one row of training, so that little of a batch is padding.

Documents are put together whole, each row as full as it gets (best-fit decreasing, as TRL's `packing` does). Position
ids begin again with every document: a model that reads them without a mask keeps documents from looking at each other.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

import torch


class PackedDataset(torch.utils.data.Dataset):
    """Rows of whole documents: `input_ids`, and `position_ids` that begin again at 0 with every document.

    Rows depend on the lengths of the documents alone, so that a resumed run sees the same ones. Every epoch has as
    many rows as the first, by which trainers count their steps. Documents that are drawn anew for every epoch change
    their lengths: where they then need more rows, the emptiest ones are left out of that epoch, and where they need
    fewer, some documents get a row of their own.

    All documents are read once for their lengths, at construction and at every further epoch.

    Args:
        dataset (`torch.utils.data.Dataset`): items `{"input_ids": list[int]}`; a `set_epoch` that it has is called.
        max_length (`int`): of a row, in ids.

    Raises:
        ValueError: a document longer than `max_length`.
    """

    def __init__(self, dataset: torch.utils.data.Dataset, max_length: int):
        self.dataset, self.max_length, self.epoch = dataset, max_length, 0
        self._rows = pack_lengths(self._read_lengths(), max_length)

    def set_epoch(self, epoch: int) -> None:
        """Selects the draw of the documents and packs it; the same epoch gives the same rows."""
        if epoch == self.epoch:
            return
        self.epoch = epoch
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
            lengths = self._read_lengths()
            self._rows = _with_num_rows(pack_lengths(lengths, self.max_length), lengths, len(self._rows))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        documents = [self.dataset[document]["input_ids"] for document in self._rows[index]]
        return {
            "input_ids": [id_ for ids in documents for id_ in ids],
            "position_ids": [position for ids in documents for position in range(len(ids))],
        }

    def _read_lengths(self) -> list[int]:
        return [len(self.dataset[index]["input_ids"]) for index in range(len(self.dataset))]


def pack_lengths(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of the lengths in each row of at most `capacity`, by best-fit decreasing.

    The longest come first, each into the row that it leaves the least room in, or into a new one.

    Raises `ValueError` for a length above `capacity`.
    """
    rows: list[list[int]] = []
    rows_with: dict[int, list[int]] = {}  # free ids -> numbers of the rows that have as many
    room: list[int] = []  # the keys, in ascending order
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if lengths[index] > capacity:
            raise ValueError(
                f"Document {index} has {lengths[index]} ids, and a row holds {capacity}; cut documents to the row's "
                "`max_length` or raise it."
            )
        place = bisect_left(room, lengths[index])
        if place == len(room):
            row, free = len(rows), capacity
            rows.append([])
        else:
            free = room[place]
            row = rows_with[free].pop()
            if not rows_with[free]:
                del rows_with[free], room[place]
        rows[row].append(index)
        if left := free - lengths[index]:
            if left not in rows_with:
                insort(room, left)
            rows_with.setdefault(left, []).append(row)
    return rows


def _with_num_rows(rows: list[list[int]], lengths: Sequence[int], num_rows: int) -> list[list[int]]:
    """The fullest `num_rows` of them; where there are fewer, documents of rows with many get rows of their own."""
    rows = sorted(rows, key=lambda row: -sum(lengths[index] for index in row))[:num_rows]
    while len(rows) < num_rows:
        rows.append([max(rows, key=len).pop()])
    return rows
