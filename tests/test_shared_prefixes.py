"""Trees of prefixes: their layout by hand, and models that score them as they score each sequence."""

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from tinywave.eval.scoring import score_sequences
from tinywave.eval.shared_prefixes import PrefixTree, batch_trees, num_shared_tokens, reads_trees, tree_inputs


def make_model(kind, attention="sdpa"):
    torch.manual_seed(0)
    sizes = {"vocab_size": 24, "hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 64}
    sizes |= {"num_attention_heads": 4, "attn_implementation": attention}
    if kind == "opt":
        model = OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, init_std=0.3))
    else:
        model = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, initializer_range=0.3))
    return model.eval()


def make_sequences():
    """Sequences that share beginnings of every length, one that contains another, and strangers."""
    generator = np.random.default_rng(0)
    stem = [1, *generator.integers(4, 24, 30).tolist()]
    families = [[*stem[:length], *generator.integers(4, 24, 3 + length % 5).tolist()] for length in range(1, 30, 3)]
    return [*families, stem, stem[:12], [2, 5, 6], [3, 7, 8, 9, 9]]


def test_layout_by_hand():
    tree = PrefixTree()
    tree.add((1, 5, 6), 0)
    tree.add((1, 5, 7, 8), 2)
    tree.add((1, 9), 1)
    assert tree.tokens == [1, 5, 6, 7, 8, 9]
    assert tree.depths == [0, 1, 2, 2, 3, 1]
    assert tree.parents == [-1, 0, 1, 1, 3, 0]
    assert list(tree.paths.values()) == [[0, 1, 2], [0, 1, 3, 4], [0, 5]]
    assert tree.ancestors().int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [1, 0, 0, 0, 0, 1],
    ]


def test_num_shared_tokens():
    assert num_shared_tokens([1, 2, 3], [1, 2, 4, 5]) == num_shared_tokens([1, 2, 4, 5], [1, 2]) == 2
    assert num_shared_tokens([], [1]) == 0


def test_batches_hold_every_sequence_within_the_limits_whatever_the_order():
    sequences = [tuple(sequence) for sequence in make_sequences()]
    batches = batch_trees(sequences, batch_size=4, max_nodes=40)
    trees = [tree for batch in batches for tree in batch]
    assert sorted(sequence for tree in trees for sequence in tree.paths) == sorted(sequences)
    for tree in trees:
        for sequence, path in tree.paths.items():
            assert tuple(tree.tokens[node] for node in path) == sequence
        assert len(tree.tokens) ** 2 <= 40**2 + sum(len(sequence) ** 2 for sequence in tree.paths)
    assert all(sum(len(tree.paths) for tree in batch) <= 4 for batch in batches)
    assert sum(len(tree.tokens) for tree in trees) < sum(map(len, sequences))
    assert batch_trees(sequences[::-1], batch_size=4, max_nodes=40) == batches
    alone = [tree for batch in batch_trees(sequences, 4, max_nodes=0) for tree in batch]
    assert len(alone) == len(sequences)
    assert [len(tree.tokens) for tree in alone] == sorted(map(len, sequences), reverse=True)


def test_a_tree_grows_beyond_the_limit_where_attention_gets_no_dearer():
    # Twice 100 tokens cost 2 * 100^2. With 90 or 60 tokens alike, 110 or 140 nodes cost less; 150 nodes cost more.
    stem = range(1, 101)
    for num_shared, num_trees in ((90, 1), (60, 1), (50, 2)):
        other = (*stem[:num_shared], *range(200, 300 - num_shared))
        batches = batch_trees([tuple(stem), other], batch_size=2, max_nodes=10)
        assert sum(map(len, batches)) == num_trees


def test_inputs_of_rows_of_one_sequence_are_padded():
    [[first, second]] = batch_trees([(1, 5, 6), (1, 7)], batch_size=2, max_nodes=0)
    inputs = tree_inputs([first, second], torch.float32, torch.device("cpu"))
    assert inputs["input_ids"].tolist() == [[1, 5, 6], [1, 7, 0]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert "position_ids" not in inputs


@pytest.mark.parametrize("kind", ["llama", "opt"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_tree_is_scored_as_its_sequences_are(kind, attention):
    model, sequences = make_model(kind, attention), make_sequences()
    assert reads_trees(model)
    for batch_size in (4, 64):
        scores = score_sequences(model, sequences, scored_ids=range(4, 24), batch_size=batch_size)
        for sequence, score in zip(sequences, scores, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([sequence])).logits[0, :-1].double()
            expected = logits.log_softmax(-1).gather(1, torch.tensor(sequence[1:])[:, None]).sum().item()
            assert score.num_tokens == len(sequence) - 1
            assert score.log_likelihood == pytest.approx(expected, abs=1e-5 * len(sequence))


def test_what_sequences_share_has_the_same_score_in_each():
    model, stem = make_model("llama"), make_sequences()[10]
    pair = [[*stem, 5, 6], [*stem, 7, 8, 9]]
    first, second = score_sequences(model, pair, scored_ids=range(4, 24), last_scored=len(stem) - 1)
    assert first == second and first.num_tokens == len(stem) - 1


def test_only_models_of_attention_alone_read_trees():
    assert not reads_trees(GPT2LMHeadModel(GPT2Config(vocab_size=24, n_embd=8, n_layer=1, n_head=1)))
    mamba = MambaForCausalLM(MambaConfig(vocab_size=24, hidden_size=8, num_hidden_layers=1, state_size=4))
    assert not reads_trees(mamba)
    assert not reads_trees(torch.nn.Linear(2, 2))
    model = make_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    assert not reads_trees(model)
