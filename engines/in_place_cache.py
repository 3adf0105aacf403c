"""Keys and values that a runtime other than PyTorch extends where they stand.

Letters in shapes: B rows, H key-value heads, L tokens, D head size.
"""

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

# Tokens that fit after those that are there, at least.
_SPARE_TOKENS = 256


class InPlaceLayer(DynamicLayer):
    """A layer of a [`DynamicCache`] that takes room for more tokens than it holds, and so seldom moves them.

    Args:
        layer (`DynamicLayer`): what it goes on from.

    `keys` and `values`, `(B, H, L, D)`, are the beginnings of larger tensors.
    """

    def __init__(self, layer: DynamicLayer):
        super().__init__()
        self._rooms = [None, None]
        if layer.get_seq_length():
            self.lazy_initialization(layer.keys, layer.values)
            self.update(layer.keys, layer.values)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values `(B, H, new, D)`; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        self.keys, self.values = (
            self._extend(index, old[:, :, :held] if held else None, new)
            for index, (old, new) in enumerate(((self.keys, key_states), (self.values, value_states)))
        )
        return self.keys, self.values

    def _extend(self, index: int, old: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
        held, room = 0 if old is None else old.shape[2], self._rooms[index]
        length = held + new.shape[2]
        # What was reordered, selected or put in from outside stands elsewhere.
        stays = old is not None and room is not None and old.data_ptr() == room.data_ptr()
        if not stays or old.stride() != room.stride() or len(old) != len(room) or length > room.shape[2]:
            room = new.new_empty(*new.shape[:2], max(2 * held, length + _SPARE_TOKENS), new.shape[3])
            if old is not None:
                room[:, :, :held] = old
            self._rooms[index] = room
        room[:, :, held:length] = new
        return room[:, :, :length]


def make_room(cache: Cache, num_layers: int, num_rows: int, num_tokens: int, sizes: tuple[int, int]) -> list:
    """Make room in a cache for new tokens, of which the runtime then writes keys and values.

    Args:
        cache: a [`DynamicCache`], whose layers become [`InPlaceLayer`]s, or another that writes in place.
        num_layers, num_rows, num_tokens (`int`): layers of the model; B; new tokens of each row.
        sizes (`tuple[int, int]`): H and D.

    Returns:
        Keys and values of each layer in turn, as whole tensors, `(B, H, capacity, D)`.

    Raises `ValueError` for a cache whose tensors are not float32 in one piece.
    """
    if isinstance(cache, DynamicCache):
        layers = [*cache.layers, *(DynamicLayer() for _ in range(num_layers - len(cache.layers)))]
        cache.layers = [InPlaceLayer(layer) if type(layer) is DynamicLayer else layer for layer in layers]
    zeros = torch.zeros(()).expand(num_rows, sizes[0], num_tokens, sizes[1])
    return [_whole(part, cache) for index in range(num_layers) for part in cache.update(zeros, zeros, index)]


def _whole(part: torch.Tensor, cache: Cache) -> torch.Tensor:
    """The tensor `(B, H, capacity, D)` of which a part is the beginning along the tokens."""
    rows, heads, _, size = part.shape
    capacity = part.stride(1) // size
    strides = (heads * capacity * size, capacity * size, size, 1)
    if part.dtype != torch.float32 or part.device.type != "cpu" or part.stride() != strides:
        raise ValueError(
            f"found a {type(cache).__name__} of {part.dtype} on {part.device} with strides {part.stride()}; expected "
            "float32 on the CPU in one piece, such as a DynamicCache has"
        )
    return part.as_strided((rows, heads, capacity, size), strides)
