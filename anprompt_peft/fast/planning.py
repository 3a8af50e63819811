"""Makes the [`Plan`] of a call: all decisions, random draws and caches, and the frozen work on texts."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..anchored import known_classes
from ..method.class_texts import ClassSet, end_of_text_positions, own_tokenizer, tokenize, trim
from ..method.config import ANPromptConfig, LogitsKind
from ..method.families import embed_images, family_of, image_entry, image_head, project_images, text_modules
from ..method.features import frozen_text_features
from ..method.noise import clean_features, text_targets
from ..method.registration import PREFIX
from ..method.rephrase import draw_rephrased, vocabulary
from .encoders import (
    block,
    denoiser_of,
    frozen_image_features,
    image_prefix,
    runs_decomposed,
    text_prefix_states,
    text_prefix_weights,
    weights_of,
)
from .fingerprint import Fingerprint, autocast_state, checksum, hooks, optimizer_steps
from .image_cache import digest
from .plan import Choice, Plan, Texts
from .run import encode_classes
from .sharding import own_shard, worth_sharding
from .state import state_of
from .text import TextPrefix, text_prefix


def plan_call(
    clip: PreTrainedModel,
    choice: Choice,
    with_labels: bool = False,
    pixel_values: Tensor | None = None,
    interpolate: bool = False,
    kind: LogitsKind | None = None,
) -> Plan:
    """Return the plan of a call; the image cache needs its images, `[B, 3, H, W]`, and whether sizes may differ."""
    plan = _decide(clip, choice, with_labels, kind)
    features = _cached_features(clip, plan)
    targets = _text_targets(clip, choice, plan) if with_labels and plan.enabled else None
    rephrased, rephrased_targets = (None, None) if targets is None else _draw_rephrased(clip, plan, targets[0])
    state = state_of(clip)
    return replace(
        plan,
        text_features=features,
        texts=class_texts(clip, plan, may_shard=True) if features is None else None,
        clean_text=clean_text(clip, plan.classes, plan.adapter) if plan.kind == "ensemble" else None,
        text_targets=targets,
        rephrased=rephrased,
        rephrased_targets=rephrased_targets,
        image_work=None if pixel_values is None else _cached_image_work(clip, plan, pixel_values, interpolate),
        class_weights=state.class_weights.get(choice.owner_of_classes),
        label_smoothing=state.label_smoothing,
    )


def plan_classes(clip: PreTrainedModel, choice: Choice, cached: bool = True) -> Plan:
    """Return a plan that encodes the classes and nothing else; without `cached` it always computes them."""
    plan = _decide(clip, choice, with_labels=False, kind="class")
    features = _cached_features(clip, plan) if cached else None
    return replace(plan, text_features=features, texts=class_texts(clip, plan) if features is None else None)


def config_of(clip: PreTrainedModel, adapter: str) -> ANPromptConfig:
    """Return an adapter's configuration; raise `ValueError` if there is none."""
    configs = image_head(clip).configs
    if adapter not in configs:
        raise ValueError("No ANPrompt adapter is active. Choose one with set_adapter(name).")
    return configs[adapter]


def trained_classes(clip: PreTrainedModel, adapter: str) -> ClassSet:
    """Return the classes that an adapter was trained on; raise `ValueError` if its weights were not loaded."""
    config, ids = config_of(clip, adapter), image_head(clip).anprompt_class_ids[adapter]

    def compute() -> ClassSet:
        if int(ids.min()) < 0:
            raise ValueError(
                f"The noise prompts of adapter {adapter!r} were neither computed nor loaded. Create the adapter "
                "with init_noise_prompts=True, or load its weights."
            )
        return ClassSet(tuple(config.class_names), tuple(config.templates), trim(ids, clip.config))

    return state_of(clip).cached("trained classes", Fingerprint([ids]), compute)


def clean_text(clip: PreTrainedModel, classes: ClassSet, adapter: str) -> Tensor:
    """Return the frozen CLIP's features w `[C, d]` of classes, by the adapter's denoiser, computed at most once."""
    frozen = [each for name, each in clip.text_model.named_parameters() if PREFIX not in name]
    _, head = text_modules(clip)
    tensors = (*frozen, *head.parameters(), *denoiser_of(clip, adapter), classes.input_ids)
    fingerprint = Fingerprint(tensors, *map(hooks, text_modules(clip)))
    return state_of(clip).cached("clean text", fingerprint, lambda: clean_features(clip, classes, adapter))


def classifier(clip: PreTrainedModel, adapter: str, names: tuple[str, ...]) -> tuple[Tensor, Tensor] | None:
    """Return which of C classes an adapter's classifier knows, int64 `[K]`, and its rows for them, `[K, d]`.

    `None` if it has no classifier, knows none of them, or its classifier has no weight.
    """
    config, fitted = config_of(clip, adapter), image_head(clip).anprompt_classifier
    if adapter not in fitted or not config.classifier_weight:
        return None
    rows: Tensor = fitted[adapter]

    def compute() -> tuple[Tensor, Tensor] | None:
        at, of = known_classes(names, config.class_names)
        return (torch.tensor(at, device=rows.device), rows[of]) if at else None

    fingerprint = Fingerprint([rows], names, torch.is_inference_mode_enabled())
    return state_of(clip).cached("classifier", fingerprint, compute)


def class_texts(clip: PreTrainedModel, plan: Plan, may_shard: bool = False) -> Texts:
    """Return the class texts of a plan, in training perhaps only those that this process encodes."""
    ids = plan.classes.input_ids
    if not (may_shard and clip.training and state_of(clip).shards and worth_sharding(len(ids))):
        return _texts(clip, plan, ids, len(plan.classes.templates), source=ids)
    return replace(_texts(clip, plan, own_shard(ids.to(clip.device)), source=ids), shared=len(ids))


def _decide(clip: PreTrainedModel, choice: Choice, with_labels: bool, kind: LogitsKind | None) -> Plan:
    config, state = config_of(clip, choice.adapter), state_of(clip)
    classes = choice.classes or trained_classes(clip, choice.adapter)
    if kind is None:
        kind = "class" if not choice.enabled else "fused" if clip.training else config.logits_for(classes.names)
    decomposed = state.decomposes and state.savings.decomposed and choice.enabled and runs_decomposed(clip, config)
    plan = Plan(choice.adapter, config, choice.enabled, classes, kind, decomposed, clip.training, with_labels)
    joins = choice.enabled and not clip.training
    return replace(plan, classifier=classifier(clip, choice.adapter, classes.names) if joins else None)


def _cached_features(clip: PreTrainedModel, plan: Plan) -> Tensor | None:
    """Return the prompted class features `[C, d]`, computed at most once; `None` where gradients are wanted."""
    head, state = image_head(clip), state_of(clip)
    weights = weights_of(*text_modules(clip), head)
    if torch.is_grad_enabled() and any(weight.requires_grad for weight in weights):
        return None
    adapter = f".{plan.adapter}."
    named = (*clip.text_model.named_parameters(), *head.named_parameters(), *head.named_buffers())
    own = [each for name, each in named if PREFIX in name and adapter in f"{name}."]
    trained = [weight for weight in weights if weight.requires_grad and all(weight is not each for each in own)]
    fingerprint = Fingerprint(
        (*weights, *head.anprompt_noise_prompts.values(), *denoiser_of(clip, plan.adapter), plan.classes.input_ids),
        plan.adapter,
        plan.enabled,
        plan.classes.names,
        torch.is_inference_mode_enabled(),
        autocast_state(clip.device.type),
        optimizer_steps(),
        [checksum(each) for each in (*own, *trained)],
        *map(hooks, text_modules(clip)),
        state.savings,
        clip.training,
    )

    def compute() -> Tensor:
        return encode_classes(clip, replace(plan, texts=class_texts(clip, plan)))

    return state.cached("text", fingerprint, compute)


def _texts(
    clip: PreTrainedModel, plan: Plan, input_ids: Tensor, templates: int = 1, source: Tensor | None = None
) -> Texts:
    """Return texts `[n, L]` as they are encoded; with a `source` that is the same object what is frozen is cached."""
    savings = state_of(clip).savings
    if not savings.decomposed:
        missing = clip.config.text_config.max_position_embeddings - input_ids.shape[1]
        input_ids = torch.cat([input_ids, input_ids[:, -1:].expand(-1, missing)], dim=1)
    if not plan.decomposed:
        return Texts(input_ids.to(clip.device))
    make = _prefixes if source is None else partial(_cached_prefixes, source)
    return Texts(None, make(clip, plan, input_ids, templates), savings.text_chunk is not None)


def _cached_prefixes(
    source: Tensor, clip: PreTrainedModel, plan: Plan, input_ids: Tensor, templates: int
) -> tuple[TextPrefix, ...]:
    weights, state = text_prefix_weights(clip, plan), state_of(clip)
    compute = partial(_prefixes, clip, plan, input_ids, templates)
    if any(weight.requires_grad for weight in weights):
        return compute()
    fingerprint = Fingerprint(
        (*weights, source),
        (state.savings, templates, tuple(input_ids.shape), input_ids.storage_offset()),
        torch.is_inference_mode_enabled(),
        autocast_state(clip.device.type),
    )

    def is_frozen(prefixes: tuple[TextPrefix, ...]) -> bool:
        return not any(prefix.chunks[0].hidden.requires_grad for prefix in prefixes)  # as hooks can ask for

    return state.cached("text prefixes", fingerprint, compute, keep_if=is_frozen)


def _prefixes(clip: PreTrainedModel, plan: Plan, input_ids: Tensor, templates: int) -> tuple[TextPrefix, ...]:
    size = state_of(clip).savings.text_chunk
    prefixes = []
    for ids in (input_ids[at::templates] for at in range(templates)):
        hidden = text_prefix_states(clip, plan, ids.to(clip.device, non_blocking=True), size)  # n / T, L, d_t
        on_host = ids.cpu()
        ends = end_of_text_positions(on_host, clip.config)
        prefixes.append(text_prefix(hidden, on_host, ends, size, family_of(clip).causal))
    return tuple(prefixes)


def _text_targets(clip: PreTrainedModel, choice: Choice, plan: Plan) -> tuple[Tensor, Tensor]:
    """Return the frozen CLIP's clean and perturbed features w and u, each `[C, d]`."""
    head = image_head(clip)
    own = head.anprompt_clean_features[plan.adapter], head.anprompt_perturbed_features[plan.adapter]
    if choice.classes is None:
        return own
    fingerprint = Fingerprint((plan.classes.input_ids, *own))  # an adapter's own features are new with every adapter

    def compute() -> tuple[Tensor, Tensor]:
        return text_targets(clip, plan.classes, plan.config, plan.adapter)[:2]

    return state_of(clip).cached(f"text targets of {plan.adapter}", fingerprint, compute)


def _draw_rephrased(clip: PreTrainedModel, plan: Plan, clean: Tensor) -> tuple[Texts | None, Tensor | None]:
    """Draw rephrased texts of classes `[C, d]` from torch's random numbers; the features `[m, d]` to give come along.

    Their token ids stay on the host, where their encoding is planned: no step then waits for the device.
    """
    config = plan.config
    wanted = config.rephrased_weight and config.rephrased_texts and config.is_trained("text")
    if not (clip.training and wanted):
        return None, None
    classes, rng = plan.classes, random.Random(int(torch.randint(2**62, ())))
    tokenizer = own_tokenizer(config) if classes.tokenizer is None else classes.tokenizer
    words = state_of(clip).cached("words", Fingerprint((), tokenizer), lambda: vocabulary(tokenizer))
    drawn = draw_rephrased(classes.names, classes.templates, words, config.rephrased_texts, rng)
    input_ids = tokenize([*drawn.texts, *drawn.anchors], tokenizer, clip.config, truncate=True)  # m, L
    anchors = frozen_text_features(clip, input_ids[len(drawn.texts) :], plan.adapter)
    rows = torch.tensor(drawn.classes).to(anchors.device, non_blocking=True)
    return _texts(clip, plan, input_ids), torch.cat([clean[rows].to(anchors), anchors])


def _cached_image_work(
    clip: PreTrainedModel, plan: Plan, pixel_values: Tensor, interpolate: bool
) -> tuple[Tensor, Tensor] | None:
    """Return images as they enter the first layer with prompts, and the frozen features, from the image cache."""
    cache = state_of(clip).image_cache
    if cache is None or not (plan.with_frozen and plan.decomposed):
        return None

    @torch.no_grad()
    def compute(pixels: Tensor) -> dict[str, Tensor]:
        hidden = image_prefix(clip, plan, pixels, interpolate)
        return {"hidden": hidden, "frozen": frozen_image_features(clip, plan, hidden)}

    @torch.no_grad()
    def outline(pixels: Tensor) -> dict[str, Tensor]:
        """Return names, shapes and dtypes of what is computed, without a layer."""
        hidden = embed_images(clip, pixels, interpolate)
        return {"hidden": hidden, "frozen": project_images(clip, hidden)}

    depends_on = f"{_frozen_vision_digest(clip)} {plan.config.first_layer('vision') - 1} {interpolate}"
    found = cache.fetch(pixel_values, depends_on, compute, outline)
    return found["hidden"], found["frozen"]


def _frozen_vision_digest(clip: PreTrainedModel) -> str:
    """Return a digest of all that CLIP's image features depend on, besides the images; computed at most once."""
    tower = clip.vision_model
    blocks = map(block, tower.encoder.layers)
    weights = weights_of(*image_entry(clip), *blocks, tower.post_layernorm, image_head(clip).base_layer)
    if any(weight.requires_grad for weight in weights):
        raise ValueError(
            "The image cache keeps results of CLIP's frozen vision encoder, and weights of it are trained. Freeze "
            "them (requires_grad_(False)), or call set_image_cache(None)."
        )

    def compute() -> str:
        numerics = f"{torch.__version__} {clip.device.type} {autocast_state(clip.device.type)}"
        return digest(weights, clip.config.vision_config.to_json_string(), numerics)

    return state_of(clip).cached("vision digest", Fingerprint(weights, autocast_state(clip.device.type)), compute)
