"""The mapping from student blocks to teacher blocks.

One `LayerMap` serves both the initialization of the student (the weights of teacher block `t` are copied into student
block `s`) and the alignment losses (the activations of block `s` are trained towards those of block `t`). A block is
one decoder layer; blocks are counted from 0, without the embedding.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerMap:
    """Map from student blocks to teacher blocks, as pairs sorted by student block.

    Args:
        pairs (`tuple[tuple[int, int], ...]`):
            Pairs `(teacher_block, student_block)` of zero-based block indices. Each student block may appear once; a
            teacher block may be mapped to several student blocks.

    Raises:
        ValueError: if the map is empty, an index is not a non-negative integer, or a student block appears twice.

    Example:

    ```python
    >>> LayerMap.every_third_ending_last(num_teacher_layers=11, num_student_layers=3).to_list()
    [[4, 0], [7, 1], [10, 2]]

    ```
    """

    pairs: tuple[tuple[int, int], ...]

    def __post_init__(self):
        pairs = tuple(tuple(pair) for pair in self.pairs)
        if not pairs:
            raise ValueError("A layer map needs at least one (teacher_block, student_block) pair; found none.")
        for pair in pairs:
            if len(pair) != 2 or any(isinstance(block, bool) or not isinstance(block, int) for block in pair):
                raise ValueError(f"Expected a (teacher_block, student_block) pair of integers; found {pair!r}.")
            if min(pair) < 0:
                raise ValueError(f"Blocks are counted from 0; found the pair {pair}. Write the index in full.")
        students = [student for _, student in pairs]
        repeated = sorted({student for student in students if students.count(student) > 1})
        if repeated:
            raise ValueError(
                f"Student blocks {repeated} appear more than once in the layer map; give each one teacher block."
            )
        object.__setattr__(self, "pairs", tuple(sorted(pairs, key=lambda pair: pair[1])))

    @classmethod
    def every_third_ending_last(cls, num_teacher_layers: int, num_student_layers: int) -> "LayerMap":
        """Return the map of arXiv 2506.23670: every third teacher block, counted back from the last one.

        For 32 teacher and 10 student layers, student block `l` is mapped to teacher block `3 * l + 4` (4, 7, ..., 31);
        for 11 and 3 layers, to teacher blocks 4, 7 and 10.

        Args:
            num_teacher_layers (`int`): number of blocks of the teacher.
            num_student_layers (`int`): number of blocks of the student.

        Raises:
            ValueError: if the teacher has too few blocks.
        """
        first = num_teacher_layers - 1 - 3 * (num_student_layers - 1)
        if num_student_layers < 1 or first < 0:
            raise ValueError(
                f"One block in three of {num_teacher_layers} teacher layers makes a student of 1 to "
                f"{max(0, (num_teacher_layers + 2) // 3)} layers; found {num_student_layers}. "
                "Use LayerMap.uniform, LayerMap.last or LayerMap.from_pairs."
            )
        return cls(tuple((first + 3 * student, student) for student in range(num_student_layers)))

    @classmethod
    def uniform(cls, num_teacher_layers: int, num_student_layers: int) -> "LayerMap":
        """Return a map to evenly spaced teacher blocks, including the first and the last, as in distil-whisper."""
        _check_depths(num_teacher_layers, num_student_layers)
        if num_student_layers == 1:
            return cls.last(num_teacher_layers, 1)
        step = (num_teacher_layers - 1) / (num_student_layers - 1)
        return cls(tuple((round(student * step), student) for student in range(num_student_layers)))

    @classmethod
    def last(cls, num_teacher_layers: int, num_student_layers: int) -> "LayerMap":
        """Return the map to the last `num_student_layers` blocks of the teacher."""
        _check_depths(num_teacher_layers, num_student_layers)
        first = num_teacher_layers - num_student_layers
        return cls(tuple((first + student, student) for student in range(num_student_layers)))

    @classmethod
    def from_pairs(cls, pairs: Iterable[Sequence[int]]) -> "LayerMap":
        """Return the map of explicit `[teacher_block, student_block]` pairs, as in a YAML recipe or `to_list`."""
        return cls(tuple(tuple(pair) for pair in pairs))

    @property
    def teacher_blocks(self) -> tuple[int, ...]:
        """Teacher blocks in the order of the student's blocks."""
        return tuple(teacher for teacher, _ in self.pairs)

    @property
    def student_blocks(self) -> tuple[int, ...]:
        """Student blocks in ascending order."""
        return tuple(student for _, student in self.pairs)

    def to_list(self) -> list[list[int]]:
        """Return the pairs as `[[teacher_block, student_block], ...]`, for YAML, JSON and model cards."""
        return [list(pair) for pair in self.pairs]

    def restricted_to(self, student_blocks: Sequence[int] | None) -> "LayerMap":
        """Return the map restricted to some student blocks.

        Args:
            student_blocks (`Sequence[int]`, *optional*): student blocks to keep; `None` keeps all.

        Raises:
            ValueError: if a student block is not in the map, or the sequence is empty.
        """
        if student_blocks is None:
            return self
        missing = sorted(set(student_blocks) - set(self.student_blocks))
        if missing:
            raise ValueError(
                f"Blocks {missing} are to be aligned, but the layer map names the student blocks "
                f"{list(self.student_blocks)} only."
            )
        return LayerMap(tuple(pair for pair in self.pairs if pair[1] in student_blocks))

    def describe(self) -> str:
        """Return a one-sentence description for a model card: a formula if the blocks are evenly spaced, else a list.

        ```python
        >>> LayerMap.every_third_ending_last(32, 10).describe()
        'Block l of the student answers to block 3l + 4 of the teacher, l = 0 ... 9.'
        >>> LayerMap.from_pairs([[0, 0], [5, 1], [7, 2]]).describe()
        'Blocks 0, 1, 2 of the student answer to blocks 0, 5, 7 of the teacher.'

        ```
        """
        count = len(self.pairs)
        teachers, students = self.teacher_blocks, self.student_blocks
        step = teachers[1] - teachers[0] if count > 1 else 1
        first = teachers[0]
        if step > 0 and self.pairs == tuple((first + step * block, block) for block in range(count)):
            factor = "" if step == 1 else step
            offset = f" + {first}" if first else ""
            return (
                f"Block l of the student answers to block {factor}l{offset} of the teacher, "
                f"l = {'0' if count == 1 else f'0 ... {count - 1}'}."
            )
        listed = [", ".join(map(str, blocks)) for blocks in (students, teachers)]
        return f"Blocks {listed[0]} of the student answer to blocks {listed[1]} of the teacher."

    def check_depths(self, num_teacher_layers: int, num_student_layers: int) -> None:
        """Check that every block of the map exists in both models.

        Args:
            num_teacher_layers (`int`): number of blocks of the teacher.
            num_student_layers (`int`): number of blocks of the student.

        Raises:
            ValueError: if a block index is out of range for its model.
        """
        for name, blocks, depth in (
            ("teacher", self.teacher_blocks, num_teacher_layers),
            ("student", self.student_blocks, num_student_layers),
        ):
            if max(blocks) >= depth:
                raise ValueError(
                    f"The layer map names {name} block {max(blocks)}, but the {name} has {depth} blocks "
                    f"(0 to {depth - 1})."
                )


def _check_depths(num_teacher_layers: int, num_student_layers: int) -> None:
    if not 1 <= num_student_layers <= num_teacher_layers:
        raise ValueError(
            f"A student of {num_student_layers} layers cannot be taken from a teacher of {num_teacher_layers}; "
            f"expected 1 to {num_teacher_layers}."
        )
