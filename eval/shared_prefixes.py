"""Sequences that begin alike, laid out so that a causal language model reads each beginning once.

The halves of a minimal pair share their start, and so do many pairs of a suite. A row holds the tree of the distinct
prefixes of its sequences, each prefix as one token; a token attends to its ancestors alone and stands at its depth
(tree attention, arXiv 2305.09781). It so gets the logits that it has in its own sequence, for fewer tokens and without
padding.
"""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

# Architectures whose tokens know of each other through the attention mask and the position ids alone.
_TREE_ARCHITECTURES = ("llama", "opt")
# Implementations of attention that take any mask.
_TREE_ATTENTION = ("sdpa", "eager")


@dataclass
class PrefixTree:
    """The distinct prefixes of some sequences.

    Args:
        tokens (`list[int]`): id of each node; a node follows its parent.
        depths (`list[int]`): place of the node in its sequences, from 0.
        parents (`list[int]`): node before it, -1 for the first token of a sequence.
        paths (`dict[tuple[int, ...], list[int]]`): sequence -> node of each of its tokens.
    """

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    paths: dict[tuple[int, ...], list[int]] = field(default_factory=dict)

    def add(self, sequence: tuple[int, ...], num_shared: int) -> None:
        """Add a sequence that begins with the same `num_shared` tokens as the last one."""
        first = len(self.tokens)
        path = list(next(reversed(self.paths.values()), []))[:num_shared]
        path += range(first, first + len(sequence) - num_shared)
        self.tokens += sequence[num_shared:]
        self.depths += range(num_shared, len(sequence))
        self.parents += [-1, *path][num_shared : len(sequence)]
        self.paths[sequence] = path

    def ancestors(self) -> torch.Tensor:
        """Which nodes each node attends to: bool of shape `(nodes, nodes)`, itself included."""
        mask = torch.zeros(len(self.tokens), len(self.tokens), dtype=torch.bool)
        for path in map(torch.tensor, self.paths.values()):
            mask[path[:, None], path] = torch.ones(len(path), len(path), dtype=torch.bool).tril()
        return mask


def reads_trees(model: nn.Module) -> bool:
    """Whether a model scores a tree of prefixes as it scores each sequence by itself.

    True for Llama (TinyWave, SPIRIT-LM) and OPT (TWIST) with the attention of transformers. Others read every sequence
    in a row of its own: a state-space model, for one, carries what it read from one branch into the next.
    """
    config = getattr(model, "config", None)
    return (
        getattr(config, "model_type", None) in _TREE_ARCHITECTURES
        and getattr(config, "_attn_implementation", None) in _TREE_ATTENTION
        and "position_ids" in inspect.signature(model.forward).parameters
    )


def batch_trees(sequences: Iterable[tuple[int, ...]], batch_size: int, max_nodes: int) -> list[list[PrefixTree]]:
    """Lays sequences out in batches of trees; the layout does not depend on their order.

    Args:
        sequences: different from each other.
        batch_size (`int`): most sequences of a batch.
        max_nodes (`int`): a tree grows up to so many nodes, and beyond where attention, which costs their square,
            costs no more than it does for separate sequences; 0 gives every sequence a tree of its own.
    """
    trees: list[PrefixTree] = []
    last: tuple[int, ...] = ()
    for sequence in sorted(sequences):
        num_shared = num_shared_tokens(last, sequence)
        if not trees or len(trees[-1].paths) == batch_size or not _fits(trees[-1], sequence, num_shared, max_nodes):
            trees.append(PrefixTree())
            num_shared = 0
        trees[-1].add(sequence, num_shared)
        last = sequence
    batches: list[list[PrefixTree]] = []
    room = 0
    for tree in sorted(trees, key=lambda tree: len(tree.tokens), reverse=True):
        if len(tree.paths) > room:
            batches.append([])
            room = batch_size
        batches[-1].append(tree)
        room -= len(tree.paths)
    return batches


def _fits(tree: PrefixTree, sequence: tuple[int, ...], num_shared: int, max_nodes: int) -> bool:
    nodes = len(tree.tokens)
    grown = nodes + len(sequence) - num_shared
    return max_nodes > 0 and (grown <= max_nodes or grown**2 <= nodes**2 + len(sequence) ** 2)


def num_shared_tokens(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    pairs = zip(first, second, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def tree_inputs(trees: Sequence[PrefixTree], dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
    """Arguments of the forward pass of a batch of trees, padded on the right with id 0.

    Returns:
        `dict`: "input_ids" of shape `(trees, nodes)` and "attention_mask". Where every tree is one sequence, the mask
        is that of padding, `(trees, nodes)`. Otherwise it is added to the attention scores, `(trees, 1, nodes,
        nodes)`, and "position_ids" of shape `(trees, nodes)` hold the depths.
    """
    size = max(len(tree.tokens) for tree in trees)
    ids = torch.tensor([tree.tokens + [0] * (size - len(tree.tokens)) for tree in trees], device=device)
    if all(len(tree.paths) == 1 for tree in trees):
        mask = [[1] * len(tree.tokens) + [0] * (size - len(tree.tokens)) for tree in trees]
        return {"input_ids": ids, "attention_mask": torch.tensor(mask, device=device)}
    # Padding attends to itself, for a softmax over nothing is NaN.
    attended = torch.eye(size, dtype=torch.bool).repeat(len(trees), 1, 1, 1)
    for row, tree in enumerate(trees):
        attended[row, 0, : len(tree.tokens), : len(tree.tokens)] = tree.ancestors()
    mask = torch.zeros(attended.shape, dtype=dtype).masked_fill_(~attended, torch.finfo(dtype).min)
    depths = torch.tensor([tree.depths + [0] * (size - len(tree.tokens)) for tree in trees], device=device)
    return {"input_ids": ids, "attention_mask": mask.to(device), "position_ids": depths}
