"""Several tokens per forward pass: heads that draft the tokens after the next one, and decoding that verifies them.

A forward pass of the decoder over a few tokens reads its weights once, as one over a single token does. So small heads
draft what follows, the decoder reads all of it at once, and what it would not have said itself is thrown away.

Shapes: B rows, T tokens, d hidden size, V vocabulary, K heads.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import BaseStreamer
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from .configuration_tinywave import TinyWaveConfig


class ParallelHead(nn.Module):
    """Moves a state on by one token: what is known of the text so far, and the token that follows -> the next state.

    A residual block, `s' = s + silu(W [norm(s); norm(e)])`: that of Medusa (arXiv 2401.10774, section 2.1.1), which in
    addition hears the embedding `e` of the token before the one that it foretells (Hydra, arXiv 2402.05109). The
    language-model head of the decoder turns states into logits.
    """

    def __init__(self, config: TinyWaveConfig):
        super().__init__()
        size = config.hidden_size
        self.state_norm = LlamaRMSNorm(size, eps=config.rms_norm_eps)
        self.embedding_norm = LlamaRMSNorm(size, eps=config.rms_norm_eps)
        self.proj = nn.Linear(2 * size, size, bias=False)

    def forward(self, states: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """States and embeddings of the tokens that follow, both `(..., d)` -> states `(..., d)`."""
        inputs = torch.cat([self.state_norm(states), self.embedding_norm(embeddings)], dim=-1)
        return states + F.silu(self.proj(inputs))


class ParallelHeads(nn.ModuleList):
    """The `config.num_parallel_heads` heads of a model; head k, counted from 1, foretells token t + 1 + k at token t.

    Head 1 starts from the decoder's last hidden state at t and hears token t + 1; each further head goes on from the
    state of the one before and hears the token that was just foretold.
    """

    def __init__(self, config: TinyWaveConfig):
        super().__init__(ParallelHead(config) for _ in range(config.num_parallel_heads))

    def forward(self, hidden_states: torch.Tensor, embeddings: torch.Tensor) -> list[torch.Tensor]:
        """The states of all heads along text that is known, as in training.

        Args:
            hidden_states (`torch.Tensor` of shape `(B, T, d)`): the decoder's last ones, after the norm.
            embeddings (`torch.Tensor` of shape `(B, T, d)`): of the same tokens.

        Returns:
            For each head k a tensor of shape `(B, T - k, d)`: the state at t, from which the language-model head
            tells token t + 1 + k, given the tokens up to t + k.
        """
        states, outputs = hidden_states, []
        for distance, head in enumerate(self, start=1):
            states = head(states[:, : embeddings.shape[1] - distance], embeddings[:, distance:])
            outputs.append(states)
        return outputs


class Draft(NamedTuple):
    """A token that a head proposes, and the distribution `(V,)` it was drawn from; None where it is the likeliest."""

    token_id: int
    probabilities: torch.Tensor | None


def verify_draft(draft: Draft, probabilities: torch.Tensor) -> int:
    """The token that speculative sampling says in the place of a draft (Leviathan et al. 2023, arXiv 2211.17192).

    The draft x is kept with probability `min(1, p(x) / q(x))`; otherwise a token is drawn from `max(0, p - q)`, which
    never gives x. Where x was drawn from q, what is said is distributed as p, whatever q is.

    Args:
        draft: with its probabilities q.
        probabilities (`torch.Tensor` of shape `(V,)`): p, the decoder's own.
    """
    ratio = probabilities[draft.token_id] / draft.probabilities[draft.token_id]
    if torch.rand((), device=ratio.device) < ratio:
        return draft.token_id
    residual = (probabilities - draft.probabilities).clamp(min=0)
    # Distributions that are equal but for rounding leave nothing to draw from.
    return _sample(residual if residual.sum() > 0 else probabilities)


def generate_with_heads(
    model: PreTrainedModel,
    input_ids: torch.LongTensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    *,
    verify_drafts: bool = True,
    streamer: BaseStreamer | None = None,
    **model_kwargs: Any,
) -> torch.LongTensor:
    """The decoding loop of `generate(parallel_heads=True)`, in the place of the one of transformers.

    Every forward pass of the decoder reads the token that was said last and the drafts after it. With `verify_drafts`
    drafts are kept as far as the decoder agrees, and one token of its own follows: taking the likeliest token, the ids
    are those of ordinary decoding; sampling, they are distributed as those are. Equal means equal up to the rounding
    of logits, which differs with the number of tokens that are computed together. Without `verify_drafts` every draft
    is kept.

    Args:
        input_ids (`torch.LongTensor` of shape `(1, T)`): the prompt.
        logits_processor, stopping_criteria: applied to every token that is said, with what stands before it; the
            processors also to the drafts.
        streamer: receives the new ids one by one.
        model_kwargs: what transformers passes to the model. Two are read: `past_key_values`, of a beginning of the
            prompt and at the end of all ids but the last, and `attention_mask` of shape `(1, T)`, 0 on padding, which
            stands left. (Named in the signature, `generate` would pass them twice.)

    Returns:
        Ids `(1, T + new)`.

    Raises `ValueError` where there are no heads, for more than one row, and for what this loop cannot do.
    """
    past_key_values, attention_mask = (model_kwargs.get(name) for name in ("past_key_values", "attention_mask"))
    _check_request(model, input_ids, generation_config, past_key_values)
    do_sample, length_limit = generation_config.do_sample, stopping_criteria.max_length
    cache = DynamicCache(config=model.config) if past_key_values is None else past_key_values
    decoder = _Decoder(model, cache, 0 if attention_mask is None else int((attention_mask == 0).sum()))
    ids, drafts, is_finished = input_ids, [], False
    while not is_finished:
        hidden, logits = decoder.read(ids, drafts)
        for num_kept in range(len(drafts) + 1):
            draft = drafts[num_kept] if num_kept < len(drafts) else None
            scores = _process(logits_processor, ids, logits[num_kept, None])
            token_id = _say(scores, draft, do_sample, verify_drafts)
            new_id = ids.new_tensor([token_id])
            ids = torch.cat([ids, new_id[None]], dim=1)
            if streamer is not None:
                streamer.put(new_id.cpu())
            is_finished = bool(stopping_criteria(ids, None).all())
            if is_finished or draft is None or token_id != draft.token_id:
                break
        cache.crop(num_kept - len(drafts))
        if not is_finished:
            # As many as fit, when the decoder adds a token of its own after them.
            heads = list(model.parallel_heads)[: length_limit - ids.shape[1] - 1]
            drafts = _draft(model, heads, hidden[num_kept, None], ids, logits_processor, do_sample)
    if streamer is not None:
        streamer.end()
    return ids


class _Decoder(NamedTuple):
    """A model, what it remembers of the ids so far, and how much padding they begin with."""

    model: PreTrainedModel
    cache: DynamicCache
    num_padding: int

    def read(self, ids: torch.LongTensor, drafts: list[Draft]) -> tuple[torch.Tensor, torch.Tensor]:
        """Read what is new of ids `(1, T)` and drafts; hidden states `(n, d)` and logits `(n, V)` of the last id and
        the drafts after it."""
        drafted = ids.new_tensor([[draft.token_id for draft in drafts]])
        known, whole = self.cache.get_seq_length(), torch.cat([ids, drafted], dim=1)
        mask, positions = None, None
        if self.num_padding:
            positions = torch.arange(whole.shape[1], device=ids.device)[None] - self.num_padding
            mask, positions = (positions >= 0).long(), positions[:, known:].clamp(min=0)
        output = self.model.model(
            input_ids=whole[:, known:],
            past_key_values=self.cache,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
        )
        hidden = output.last_hidden_state[0, -len(drafts) - 1 :]
        return hidden, self.model.lm_head(hidden).float()


def _say(scores: torch.Tensor, draft: Draft | None, do_sample: bool, verify_drafts: bool) -> int:
    """The token that is said where the decoder gives the scores `(V,)` and a head may have proposed a draft."""
    if draft is not None and not verify_drafts:
        return draft.token_id
    if not do_sample:
        return int(scores.argmax())
    probabilities = scores.softmax(-1)
    return _sample(probabilities) if draft is None else verify_draft(draft, probabilities)


def _draft(
    model: PreTrainedModel,
    heads: list[ParallelHead],
    state: torch.Tensor,
    ids: torch.LongTensor,
    logits_processor: LogitsProcessorList,
    do_sample: bool,
) -> list[Draft]:
    """Propose a token with every head after ids `(1, T)`; `state` `(1, d)` is the hidden one before the last id."""
    embed, ends, drafts = model.get_input_embeddings(), model.config.eos_token_ids, []
    for head in heads:
        state = head(state, embed(ids[:, -1]))
        scores = _process(logits_processor, ids, model.lm_head(state).float())
        probabilities = scores.softmax(-1) if do_sample else None
        drafts.append(Draft(int(scores.argmax()) if probabilities is None else _sample(probabilities), probabilities))
        if drafts[-1].token_id in ends:
            break
        ids = torch.cat([ids, ids.new_tensor([[drafts[-1].token_id]])], dim=1)
    return drafts


def _process(logits_processor: LogitsProcessorList, ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
    """Scores `(1, V)` after ids `(1, T)` -> scores `(V,)`.

    Calling the list would inspect the signature of each processor anew, which takes as long as a head.
    """
    for processor in logits_processor:
        scores = processor(ids, scores)
    return scores[0]


def _sample(weights: torch.Tensor) -> int:
    """Draw an index in proportion to weights `(V,)`."""
    return int(torch.multinomial(weights, num_samples=1))


def _check_request(model, input_ids, generation_config, cache) -> None:
    if not model.config.num_parallel_heads:
        raise ValueError(
            "found a model without parallel heads; train some with `tinywave train-heads`, or leave out parallel_heads"
        )
    refused = {"num_beams": (None, 1), "guidance_scale": (None, 1), "return_dict_in_generate": (None, False)}
    for name, allowed in refused.items():
        value = getattr(generation_config, name)
        if value not in allowed:
            raise ValueError(f"found {name}={value!r}, which parallel heads do not support; leave out one of the two")
    if len(input_ids) != 1:
        raise ValueError(f"found {len(input_ids)} rows; parallel heads continue one prompt at a time")
    if cache is not None and type(cache) is not DynamicCache:
        raise ValueError(f"found a {type(cache).__name__}; parallel heads need a DynamicCache, which can be cropped")
