"""Weights of 8 bits, with nothing to install beside PyTorch: linear layers for the CPU, and smaller files.

A token that is generated reads every weight once, so its time is that of reading them: a quarter of the bytes of
float32. Weights are rounded per output channel and activations per token, at every call, and their products are
summed as integers (dynamic quantization, Jacob et al. 2018, arXiv 1712.05877). A token's output so depends on no other
token: not on the batch, nor on how many are computed together.

[`round_weights`] only stores the weights of a model in 8 bits, and computes with them in floating point, anywhere.
"""

import platform
import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils import parametrize

INT8 = "int8"
# PyTorch's 8-bit kernels that take a scale of ours; they are the fastest at batch 1, too.
_ENGINE = "x86"


def quantize_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a matrix to 8 bits, symmetrically and per output channel.

    Args:
        weight (`torch.Tensor` of shape `(outputs, inputs)`): finite numbers.

    Returns:
        `torch.int8` of the same shape in [-127, 127], and scales, float32 of shape `(outputs,)`, so that
        `scale[:, None] * rounded` is the weight to within half a scale.

    Raises `ValueError` for NaN or infinity.
    """
    weight = weight.detach().float()
    largest = weight.abs().amax(dim=1)
    if not torch.isfinite(largest).all():
        raise ValueError("found NaN or infinity in a weight to quantize; check the checkpoint")
    scale = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (weight / scale[:, None]).round().to(torch.int8), scale


class Int8Linear(nn.Module):
    """A linear layer without bias whose weight is stored in 8 bits; in and out are floating point.

    Args:
        in_features, out_features (`int`): as of `nn.Linear`.

    `int8_weight` (`torch.int8`, shape `(out_features, in_features)`) and `scale` (float32, shape `(out_features,)`)
    are saved and loaded like any buffer; a plain Llama finds no weight in them, rather than a wrong one. At the first
    call the weight is packed for the CPU, in place of the buffer, so that it is held once.

    Raises `RuntimeError` where there are no 8-bit kernels: on other devices, and on CPUs that PyTorch has none for.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("int8_weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(out_features, dtype=torch.float32))
        self._packed = None
        # Without VNNI the kernels add two products of 8 bits in 16, which overflows unless activations have 7.
        self._largest = 127 if torch.cpu._is_vnni_supported() else 63

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> "Int8Linear":
        """The same layer, rounded. Raises `ValueError` for a layer with a bias."""
        if linear.bias is not None:
            raise ValueError("found a linear layer with a bias; the layers of a Llama have none")
        quantized = cls(linear.in_features, linear.out_features)
        quantized.int8_weight, quantized.scale = quantize_weight(linear.weight)
        return quantized

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(..., in_features)` of any floating-point type -> `(..., out_features)` of the same type."""
        if self._packed is None:
            self._packed = self._pack()
        values = hidden_states.float()
        largest = values.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        output = multiply(values / largest, 1 / self._largest, self._largest + 1, self._packed) * largest
        return output.to(hidden_states.dtype)

    def _pack(self):
        if self.int8_weight.device.type != "cpu":
            raise RuntimeError(
                f"8-bit weights run on the CPU; found {self.int8_weight.device}. Load the model in bfloat16."
            )
        if _ENGINE not in torch.backends.quantized.supported_engines:
            raise RuntimeError(f"PyTorch has no 8-bit kernels for this CPU ({platform.machine()}); use bfloat16.")
        chosen, torch.backends.quantized.engine = torch.backends.quantized.engine, _ENGINE
        try:
            with warnings.catch_warnings():
                # Announced for removal, and still what the packing takes.
                warnings.filterwarnings("ignore", message=".*quantized tensor creation.*")
                scale = self.scale.double()
                zeros = torch.zeros_like(scale, dtype=torch.long)
                weight = torch._make_per_channel_quantized_tensor(self.int8_weight, scale, zeros, 0)
                packed = torch.ops.quantized.linear_prepack(weight, None)
        finally:
            torch.backends.quantized.engine = chosen
        self.int8_weight = self.int8_weight.new_empty(0)
        return packed

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._packed is not None:
            weight, _ = torch.ops.quantized.linear_unpack(self._packed)
            destination[f"{prefix}int8_weight"] = weight.int_repr()

    def _load_from_state_dict(self, *args, **kwargs):
        if self._packed is not None:
            self._packed = None
            self.int8_weight = torch.empty(self.out_features, self.in_features, dtype=torch.int8)
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def replace_linears(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Put `make(linear)` in the place of every `nn.Linear` of a model; a weight shared with the embedding stays."""
    is_shared = {id(model.get_input_embeddings().weight)}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and id(child.weight) not in is_shared:
                setattr(parent, name, make(child))


def empty_int8(linear: nn.Linear) -> Int8Linear:
    """An [`Int8Linear`] of the same sizes, for weights that are loaded later."""
    return Int8Linear(linear.in_features, linear.out_features)


class RoundedWeight(nn.Module):
    """Parametrization of a weight that is stored in 8 bits and computed with in floating point.

    The two tensors that stand for the weight, `original0` (`torch.int8`, the shape of the weight) and `original1`
    (scales, one per output channel), are saved and loaded as any others.
    """

    def forward(self, rounded: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return rounded.to(scale.dtype) * scale.view(-1, *[1] * (rounded.dim() - 1))

    def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if weight.is_meta:  # while a checkpoint is loaded there is nothing to round yet
            return weight.to(torch.int8), weight.flatten(1).sum(1)
        rounded, scale = quantize_weight(weight.flatten(1))
        return rounded.view_as(weight), scale


def round_weights(model: nn.Module) -> None:
    """Store the weights of all linear layers and convolutions in 8 bits, a quarter of the bytes.

    They do not learn from then on. A weight that is made of others, as by weight norm, stays as it is.

    Raises `ValueError` for NaN or infinity in a weight.
    """
    for module in list(model.modules()):
        if isinstance(module, nn.Linear | nn.Conv1d) and not parametrize.is_parametrized(module):
            module.weight.requires_grad_(False)
            # The type of what is stored is another than that of the weight.
            parametrize.register_parametrization(module, "weight", RoundedWeight(), unsafe=True)


def unround_weights(model: nn.Module) -> None:
    """Undo [`round_weights`], for training: the weights keep the values they were rounded to."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module) and isinstance(module.parametrizations.weight[0], RoundedWeight):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
            # Made of two tensors, it is left as a buffer.
            weight = module.weight.detach().clone()
            del module.weight
            module.weight = nn.Parameter(weight)
