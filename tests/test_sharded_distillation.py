"""Both models sharded over two processes (FSDP2 on gloo): loss and gradients are those of the whole models."""

import os
import subprocess
import sys

import safetensors.torch
import torch
import torch.distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from tinywave.distill_trainer import DistillationTrainer
from tinywave.training.arguments import DistillationArguments
from tinywave.training.layer_map import LayerMap


def make_model(seed, **changes):
    torch.manual_seed(seed)
    settings = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4,
                    max_position_embeddings=64, pad_token_id=0)  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**(settings | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # far from uniform attention and from uniform predictions
    return model


def shard(model):
    """Share a model out as accelerate does: the embedding, every block, norm and head together, and the rest."""
    for module in (model.model.embed_tokens, *model.model.layers):
        fully_shard(module)
    fully_shard([model.model.norm, model.lm_head], reshard_after_forward=False)
    fully_shard(model)


def loss_and_gradients(folder, sharded):
    """One backward pass over a batch, with projectors, relations and both passes of every loss through both models."""
    student = make_model(1, num_hidden_layers=2, hidden_size=24, num_attention_heads=2)
    trainer = DistillationTrainer(
        student,
        make_model(0),
        LayerMap.from_pairs([(1, 0), (4, 1)]),
        DistillationArguments(output_dir=str(folder), use_cpu=True, report_to="none", logits_chunk_size=7),
    )
    if sharded:
        shard(student)
        shard(trainer.teacher.model)
        assert isinstance(trainer.teacher.model.lm_head.weight, DTensor)
    ids = torch.randint(1, 40, (3, 12), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(2):  # the second pass finds what the first has left gathered or shared out
        student.zero_grad()
        loss = trainer.compute_loss(student, {"input_ids": ids, "labels": ids})
        loss.backward()
        losses.append(loss.detach())
    gradients = {name: parameter.grad for name, parameter in student.named_parameters()}
    gradients = {name: value.full_tensor() if sharded else value for name, value in gradients.items()}
    return {"losses": torch.stack(losses), **gradients}


def test_sharded_models_give_the_gradients_of_whole_ones(tmp_path):
    finished = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__, tmp_path],
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr
    found = safetensors.torch.load_file(tmp_path / "sharded.safetensors")
    expected = loss_and_gradients(tmp_path, sharded=False)
    assert set(found) == set(expected)
    assert any(name.startswith("distill_projectors") for name in found)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


if __name__ == "__main__":
    result = loss_and_gradients(sys.argv[1], sharded=True)
    if torch.distributed.get_rank() == 0:
        safetensors.torch.save_file(result, os.path.join(sys.argv[1], "sharded.safetensors"))
    torch.distributed.barrier()  # a process that leaves with the group open may abort, and end the other one
    torch.distributed.destroy_process_group()
