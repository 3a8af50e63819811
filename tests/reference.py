"""The method written out plainly: the oracle that the tests compare the package with.

It shares no code with the package and calls no module of CLIP: it takes CLIP's tensors by name, CLIP's sizes from its
config, and spells the arithmetic out with torch functions. MetaCLIP 2 and SigLIP differ where their model type is
asked for. Everything is differentiable, nothing is cached, and the dtype is that of the tensors given. Layers are
counted from 1. Dropout is not modelled (CLIP has none by default).

Shapes: B images, C classes, L text positions, n prompt rows (N + K for `concat`, N for `add`), r latent width, d_t and
d_v the encoders' widths, d the joint width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel

Maps = dict[int, tuple[Tensor, Tensor]]
Matrices = dict[str, Tensor]
Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Adapter:
    """All that the method adds to CLIP: its tensors and its settings."""

    tokens: Tensor  # R [N, r]
    noise: Tensor  # P [K, r], already in the latent space
    text_maps: Maps  # 1-based target layer -> (weight [d_t, r], bias [d_t])
    vision_maps: Maps  # 1-based target layer -> (weight [d_v, r], bias [d_v])
    prototype: Tensor  # W_p [d, d_v]; for SigLIP what is added to its head
    text_updates: dict[int, Tensor]  # 1-based layer -> B A [d_t, d_t], added to the identity
    matrices: Matrices  # by the weight's name in CLIP -> s B A, added to the weight
    integration: str = "concat"
    prompt_mixing: float = 1.0
    alpha: float = 0.7
    similarity_weight: float = 0.5
    waloss_weight: float = 1.0


def normalize(features: Tensor) -> Tensor:
    """x / |x| along the last dimension."""
    return features / (features * features).sum(dim=-1, keepdim=True).sqrt()


def weights(clip: CLIPModel, adapter: Adapter | None) -> Parameters:
    """CLIP's tensors by name, with the adapter's updates of matrices added."""
    added = {} if adapter is None else adapter.matrices
    parameters = dict(clip.named_parameters())
    return {**parameters, **{name: parameters[name] + update for name, update in added.items()}}


def prompts(adapter: Adapter) -> Tensor:
    """A [n, r]: the noise prompts below the learnable tokens (`concat`), or on top of them, row by row (`add`)."""
    if adapter.integration == "concat":
        return torch.cat([adapter.tokens, adapter.noise], dim=0)
    if adapter.integration != "add":
        raise ValueError(f"integration {adapter.integration!r}")
    if adapter.tokens.shape != adapter.noise.shape:
        raise ValueError(f"add needs R and P of one shape, not {adapter.tokens.shape} and {adapter.noise.shape}")
    return adapter.tokens + adapter.noise


def linear(parameters: Parameters, name: str, x: Tensor) -> Tensor:
    """[..., in] -> [..., out] by the linear layer `name`, with its bias where it has one."""
    return F.linear(x, parameters[f"{name}.weight"], parameters.get(f"{name}.bias"))


def layer_norm(parameters: Parameters, name: str, config: Any, x: Tensor) -> Tensor:
    """The layer norm `name` over the last dimension."""
    return F.layer_norm(
        x, x.shape[-1:], parameters[f"{name}.weight"], parameters[f"{name}.bias"], config.layer_norm_eps
    )


def activation(name: str, x: Tensor) -> Tensor:
    """CLIP's two activations, `quick_gelu` (OpenAI's weights) and the exact `gelu`, and SigLIP's."""
    if name == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    if name == "gelu":
        return F.gelu(x)
    if name == "gelu_pytorch_tanh":
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    raise ValueError(f"activation {name!r}")


def attention(parameters: Parameters, name: str, config: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """Multi-head self-attention [B, S, width] -> [B, S, width]; the mask, added to the scores, is [B, 1, S, S]."""
    batch, length, width = x.shape
    heads = config.num_attention_heads
    query, key, value = (
        linear(parameters, f"{name}.{part}_proj", x).reshape(batch, length, heads, width // heads).transpose(1, 2)
        for part in "qkv"
    )
    scores = query @ key.transpose(2, 3) * (width // heads) ** -0.5
    if mask is not None:
        scores = scores + mask
    mixed = torch.softmax(scores, dim=-1) @ value
    return linear(parameters, f"{name}.out_proj", mixed.transpose(1, 2).reshape(batch, length, width))


def encoder_layer(parameters: Parameters, name: str, config: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """One pre-norm transformer block [B, S, width] -> [B, S, width]."""
    x = x + attention(
        parameters, f"{name}.self_attn", config, layer_norm(parameters, f"{name}.layer_norm1", config, x), mask
    )
    inner = linear(parameters, f"{name}.mlp.fc1", layer_norm(parameters, f"{name}.layer_norm2", config, x))
    return x + linear(parameters, f"{name}.mlp.fc2", activation(config.hidden_act, inner))


def text_mask(attention_mask: Tensor, inserted: int, dtype: torch.dtype) -> Tensor:
    """Additive mask [C, 1, S, S], S = L + inserted: -inf on later keys and on padded keys, 0 elsewhere.

    The padding mask [C, L] gets `inserted` ones after column 0, where the prompts stand.
    """
    kept = attention_mask.bool()
    if not kept[:, 0].all():
        raise ValueError("the first position is padded: left padding is not CLIP's")
    kept = torch.cat([kept[:, :1], kept.new_ones(len(kept), inserted), kept[:, 1:]], dim=1)
    length = kept.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=kept.device).tril()
    allowed = causal[None, None] & kept[:, None, None, :]
    return torch.zeros(allowed.shape, dtype=dtype, device=kept.device).masked_fill(~allowed, float("-inf"))


def padding_mask(attention_mask: Tensor, inserted: int, dtype: torch.dtype) -> Tensor:
    """Additive mask [C, 1, 1, S] of texts without direction: -inf on padded keys; the prompts stand in front."""
    kept = F.pad(attention_mask.bool(), (inserted, 0), value=True)
    return torch.zeros(kept.shape, dtype=dtype).masked_fill(~kept, float("-inf"))[:, None, None]


def is_siglip(clip: Any) -> bool:
    """No BOS and no class token, texts without direction, images pooled by attention, a bias of logits."""
    return clip.config.model_type == "siglip"


def place(hidden: Tensor, new: Tensor, present: int, mixing: float, start: int = 1) -> Tensor:
    """Puts prompts `new` [n, width] after the start of `hidden` [B, S, width], in the place of the `present` ones.

    Mixing applies only where prompts come in: mixing * new + (1 - mixing) * incoming.
    """
    rows = new.expand(len(hidden), *new.shape)
    if present and mixing != 1.0:
        rows = mixing * rows + (1.0 - mixing) * hidden[:, start : start + present]
    return torch.cat([hidden[:, :start], rows, hidden[:, start + present :]], dim=1)


def encoder(
    parameters: Parameters,
    name: str,
    config: Any,
    hidden: Tensor,
    mask: Callable[[int], Tensor | None],
    rows: Tensor | None,
    maps: Maps,
    updates: dict[int, Tensor],
    mixing: float,
    start: int,
) -> tuple[Tensor, Tensor]:
    """All the layers [B, S, width] -> ([B, S, width] without the prompts, the prompts [B, n or 0, width]).

    `mask` gives the additive mask for a number of inserted prompts; `rows` is A [n, r], None for plain CLIP.
    """
    if rows is not None and not all(1 <= target <= config.num_hidden_layers for target in maps):
        raise ValueError(f"target layers {sorted(maps)} of {config.num_hidden_layers}")
    present = 0
    for layer in range(1, config.num_hidden_layers + 1):
        if rows is not None and layer in maps:
            weight, bias = maps[layer]
            hidden = place(hidden, rows @ weight.T + bias, present, mixing, start)
            present = len(rows)
        if layer in updates:
            hidden = hidden + hidden @ updates[layer].T
        hidden = encoder_layer(parameters, f"{name}.layers.{layer - 1}", config, hidden, mask(present))
    prompts_out = hidden[:, start : start + present]
    return torch.cat([hidden[:, :start], hidden[:, start + present :]], dim=1), prompts_out


def eot_positions(input_ids: Tensor, eos_token_id: int) -> Tensor:
    """[C, L] -> [C]: the first EOT; with the legacy id 2 the first position of the largest id."""
    return (input_ids if eos_token_id == 2 else (input_ids == eos_token_id).int()).argmax(dim=1)


def encode_text(clip: CLIPModel, input_ids: Tensor, attention_mask: Tensor | None, adapter: Adapter | None) -> Tensor:
    """Projected text features [C, d], not normalised, of ids [C, L]; without an adapter, the frozen CLIP's."""
    parameters, config = weights(clip, adapter), clip.config.text_config
    words = parameters["text_model.embeddings.token_embedding.weight"]
    positions = parameters["text_model.embeddings.position_embedding.weight"]
    hidden = words[input_ids] + positions[: input_ids.shape[1]]
    kept = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    hidden, _ = encoder(
        parameters,
        "text_model.encoder",
        config,
        hidden,
        mask=lambda inserted: (padding_mask if is_siglip(clip) else text_mask)(kept, inserted, hidden.dtype),
        rows=None if adapter is None else prompts(adapter),
        maps={} if adapter is None else adapter.text_maps,
        updates={} if adapter is None else adapter.text_updates,
        mixing=1.0,
        start=0 if is_siglip(clip) else 1,
    )
    hidden = layer_norm(parameters, "text_model.final_layer_norm", config, hidden)
    if is_siglip(clip):
        return linear(parameters, "text_model.head", hidden[:, -1])
    ends = eot_positions(input_ids, config.eos_token_id)
    if clip.config.model_type == "metaclip_2":  # whose end-of-text token is 2
        ends = (input_ids == config.eos_token_id).int().argmax(dim=1)
    return linear(parameters, "text_projection", hidden[torch.arange(len(hidden)), ends])


def embed_image(parameters: Parameters, config: Any, pixel_values: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, 1 + patches, d_v]: class token and patches with their positions, then the pre-norm.

    SigLIP has patches alone, with a bias and without the norm.
    """
    kernel = parameters["vision_model.embeddings.patch_embedding.weight"]
    bias = parameters.get("vision_model.embeddings.patch_embedding.bias")
    patches = F.conv2d(pixel_values, kernel, bias, stride=kernel.shape[2:]).flatten(2).transpose(1, 2)
    if "vision_model.embeddings.class_embedding" not in parameters:
        return patches + parameters["vision_model.embeddings.position_embedding.weight"]
    first = parameters["vision_model.embeddings.class_embedding"].expand(len(patches), 1, -1)
    hidden = torch.cat([first, patches], dim=1) + parameters["vision_model.embeddings.position_embedding.weight"]
    return layer_norm(parameters, "vision_model.pre_layrnorm", config, hidden)


def pool(parameters: Parameters, config: Any, hidden: Tensor) -> Tensor:
    """SigLIP's image head [B, S, d_v] -> [B, d_v]: a learned query attends to all positions, then a residual MLP."""
    name, (batch, _, width), heads = "vision_model.head", hidden.shape, config.num_attention_heads
    weights = parameters[f"{name}.attention.in_proj_weight"].chunk(3)
    biases = parameters[f"{name}.attention.in_proj_bias"].chunk(3)
    query, key, value = (
        F.linear(x, weight, bias).reshape(len(x), -1, heads, width // heads).transpose(1, 2)
        for x, weight, bias in zip((parameters[f"{name}.probe"], hidden, hidden), weights, biases, strict=True)
    )
    mixed = torch.softmax(query @ key.mT * (width // heads) ** -0.5, dim=-1) @ value  # B, heads, 1, width / heads
    pooled = linear(parameters, f"{name}.attention.out_proj", mixed.transpose(1, 2).reshape(batch, width))
    inner = linear(parameters, f"{name}.mlp.fc1", layer_norm(parameters, f"{name}.layernorm", config, pooled))
    return pooled + linear(parameters, f"{name}.mlp.fc2", activation(config.hidden_act, inner))


def encode_image(clip: CLIPModel, pixel_values: Tensor, adapter: Adapter | None) -> tuple[Tensor, Tensor | None]:
    """([B, d] class-token features, [B, d] prototypes or None where no prompts went in), neither normalised."""
    parameters, config = weights(clip, adapter), clip.config.vision_config
    hidden, rows = encoder(
        parameters,
        "vision_model.encoder",
        config,
        embed_image(parameters, config, pixel_values),
        mask=lambda inserted: None,
        rows=None if adapter is None else prompts(adapter),
        maps={} if adapter is None else adapter.vision_maps,
        updates={},
        mixing=1.0 if adapter is None else adapter.prompt_mixing,
        start=0 if is_siglip(clip) else 1,
    )
    if is_siglip(clip):
        features = pool(parameters, config, layer_norm(parameters, "vision_model.post_layernorm", config, hidden))
        if adapter is None or rows.shape[1] == 0:
            return features, None
        mean = layer_norm(parameters, "vision_model.post_layernorm", config, rows).mean(dim=1)
        return features, pool(parameters, config, mean[:, None]) + mean @ adapter.prototype.T
    pooled = layer_norm(parameters, "vision_model.post_layernorm", config, hidden[:, 0])
    features = linear(parameters, "visual_projection", pooled)
    if adapter is None or rows.shape[1] == 0:
        return features, None
    normed = layer_norm(parameters, "vision_model.post_layernorm", config, rows)
    return features, (normed @ adapter.prototype.T).mean(dim=1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the batch of -log softmax(logits [B, C]) at labels [B]."""
    return -logits.log_softmax(dim=1)[torch.arange(len(labels)), labels].mean()


def waloss(logits_perturbed: Tensor, logits_class: Tensor) -> Tensor:
    """s * sum P (log P - log Q), P = softmax(logits_perturbed) the target, Q = softmax(logits_class), both [B, C].

    s = 1 / ((std(logits_class) + 1e-6) * numel), the standard deviation unbiased and part of the graph.
    """
    log_target, log_prediction = logits_perturbed.log_softmax(dim=1), logits_class.log_softmax(dim=1)
    divergence = (log_target.exp() * (log_target - log_prediction)).sum()
    return divergence / ((logits_class.std(correction=1) + 1e-6) * logits_class.numel())


def reference_forward(
    clip: CLIPModel,
    adapter: Adapter,
    pixel_values: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    labels: Tensor,
    clean: Tensor,
    perturbed: Tensor,
) -> dict[str, Tensor]:
    """Logits [B, C], the unweighted loss terms and their weighted total, by name.

    `clean` is w [C, d] and `perturbed` u [C, d], both normalised. Without vision prompts there is no prototype: then
    its logits, its cross entropy and WALoss are absent, and alpha scales nothing.
    """
    parameters = dict(clip.named_parameters())
    scale, bias = parameters["logit_scale"].exp(), parameters.get("logit_bias", 0.0)
    text = normalize(encode_text(clip, input_ids, attention_mask, adapter))
    features, raw_prototype = encode_image(clip, pixel_values, adapter)
    image = normalize(features)
    with torch.no_grad():
        teacher = normalize(encode_image(clip, pixel_values, None)[0])
    out = {
        "logits_class": scale * image @ text.T + bias,
        "similarity_image": 1.0 - (image * teacher).sum(dim=1).mean(),
        "similarity_text": 1.0 - (text * clean).sum(dim=1).mean(),
    }
    out["cross_entropy_class"] = cross_entropy(out["logits_class"], labels)
    similarity = adapter.similarity_weight * (out["similarity_image"] + out["similarity_text"])
    if raw_prototype is None:
        out["logits_fused"] = out["logits_class"]
        out["loss"] = out["cross_entropy_class"] + similarity
        return out
    prototype, alpha = normalize(raw_prototype), adapter.alpha
    out["logits_prototype"] = scale * prototype @ text.T + bias
    out["logits_fused"] = alpha * out["logits_class"] + (1.0 - alpha) * out["logits_prototype"]
    out["cross_entropy_prototype"] = cross_entropy(out["logits_prototype"], labels)
    out["waloss"] = waloss(scale * prototype @ perturbed.T + bias, out["logits_class"])
    out["loss"] = (
        alpha * out["cross_entropy_class"]
        + (1.0 - alpha) * out["cross_entropy_prototype"]
        + similarity
        + adapter.waloss_weight * out["waloss"]
    )
    return out


def anchored_loss(
    images: Tensor, labels: Tensor, texts: Tensor, delta: Tensor, scale: float, strength: float, weights: Tensor
) -> Tensor:
    """What the anchored classifier minimises: D [C, d] beside the texts T [C, d], on images [n, d], labels [n].

    The cross entropy is a mean weighted by the weights [C] of the labels.
    """
    losses = torch.stack([
        -(scale * image @ (texts + delta).T).log_softmax(dim=0)[label] * weights[label]
        for image, label in zip(images, labels, strict=True)
    ])  # fmt: skip
    return losses.sum() / weights[labels].sum() + strength * (delta * delta).sum()


def joined(logits: Tensor, learned: Tensor, known: list[int], weight: float) -> Tensor:
    """Probabilities [B, C]: among the known classes p q^weight, of softmaxes p and q [B, K] over these alone.

    Together they have the probability that the softmax of the logits [B, C] gives them.
    """
    whole = logits.softmax(dim=1)
    result = whole.clone()
    for row in range(len(logits)):
        p, q = logits[row, known].softmax(dim=0), learned[row].softmax(dim=0)
        votes = p * q**weight
        result[row, known] = whole[row, known].sum() * votes / votes.sum()
    return result
