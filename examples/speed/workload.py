"""What is timed: ViT-B/16 or SigLIP-base with random weights, random images, made-up names, and ways to train."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, SiglipConfig, SiglipModel

from anprompt_peft import ANPromptConfig
from anprompt_peft.fast import Savings, set_precision
from anprompt_peft.method.class_texts import tokenize
from anprompt_peft.method.families import family_of, image_head, joint_width
from anprompt_peft.method.noise import Fitted
from harness import Step

BOS, EOS = 49406, 49407
IMAGE_SIZE, PATCH = 224, 16
WORDS_PER_NAME = (1, 1, 2, 2, 3, 4)
TEMPLATE = "a photo of a {}."
OTHER_WORDS = ("bridge", "cloud", "letter", "spoon", "winter")
LORA, BFLOAT16, COMPILED, SIGLIP = "lora", "-bf16", "compiled", "siglip-"
SAVINGS = {
    "savings": Savings(), "plain": Savings.none(), "chunks": Savings(text_chunk=500), COMPILED: Savings(),
}  # fmt: skip
WAYS = [kind + precision for precision in ("", BFLOAT16) for kind in (*SAVINGS, LORA)]
WAYS += [SIGLIP + kind for kind in ("savings", "plain", LORA)]
FORMER = {"text_update_rank": None, "rephrased_weight": 0.0}


def make_tokenizer(class_names: list[str], starts: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word, so that lengths are known; words of no class text are unknown to it.

    Its last entries are never made of a text: training draws words for texts about other things from such pieces.
    """
    words = dict.fromkeys(f"{TEMPLATE} {' '.join(class_names)}".replace("{}.", ".").split())
    words |= dict.fromkeys(f"{word}</w>" for word in OTHER_WORDS)
    vocabulary = {"<unk>": 0, **{word: number for number, word in enumerate(words, 1)}}
    ends = {"<bos>": BOS, "<eos>": EOS} if starts else {"<eos>": len(vocabulary)}
    vocabulary |= ends
    tokenizer = Tokenizer(WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    single = "<bos> $A <eos>" if starts else "$A <eos>"
    tokenizer.post_processor = TemplateProcessing(single, special_tokens=list(ends.items()))
    special = {"eos_token": "<eos>", "pad_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **({"bos_token": "<bos>"} if starts else {}))


@dataclass(frozen=True)
class Size:
    """How much there is of everything in a step."""

    classes: int
    batch: int
    tokens: int = 9
    image: int = IMAGE_SIZE

    def __str__(self) -> str:
        return f"{self.classes:,} x {self.batch} x {self.tokens} x {self.image}"


def read_size(text: str) -> Size:
    """Parse CLASSESxBATCH, with prompt tokens and the image's side behind it or without."""
    parts = text.split("x")
    if not (2 <= len(parts) <= 4 and all(part.isdecimal() and int(part) > 0 for part in parts)):
        raise argparse.ArgumentTypeError(f"{text!r} must be CLASSESxBATCH[xTOKENS[xPIXELS]], such as 50x4")
    size = Size(*map(int, parts))
    if min(size.classes, size.tokens) < 2 or size.image % PATCH:
        raise argparse.ArgumentTypeError(
            f"{text!r}: classes and tokens start at 2, and pixels are a multiple of {PATCH}, as in 50x4x9x224"
        )
    return size


def add_step_options(parser: argparse.ArgumentParser, sizes: str) -> None:
    """Add the sizes and ways of a step."""
    form = "CLASSESxBATCH[xTOKENS[xPIXELS]]"
    default = [read_size(each) for each in sizes.split()]
    help_text = f"by default {sizes}, each with 9 prompt tokens and images of {IMAGE_SIZE} pixels"
    parser.add_argument("--sizes", nargs="+", type=read_size, default=default, metavar=form, help=help_text)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["savings", "plain", LORA], metavar="WAY",
                        help=f"of {', '.join(WAYS)}; -bf16 holds CLIP's frozen weights in bfloat16")  # fmt: skip
    parser.add_argument("--former", action="store_true", help="the former default: no rephrased texts, no updates")


@dataclass
class Workload:
    """A batch of images with labels, and classes.

    Attributes:
        class_names: C names of one to four words.
        pixels: float32 [B, 3, H, W].
        labels: int64 [B].
    """

    class_names: list[str]
    pixels: Tensor
    labels: Tensor

    @property
    def images(self) -> dict[str, Any]:
        """The pixels as arguments of a CLIP that was made for `IMAGE_SIZE`."""
        resized = {"interpolate_pos_encoding": True} if self.pixels.shape[-1] != IMAGE_SIZE else {}
        return {"pixel_values": self.pixels, **resized}

    def to(self, device: str) -> Workload:
        """The same on a device."""
        return Workload(self.class_names, self.pixels.to(device), self.labels.to(device))


def make_clip(
    text: dict[str, int] | None = None,
    vision: dict[str, int] | None = None,
    projection_dim: int = 512,
    dtype: str = "float32",
) -> CLIPModel:
    """CLIP of ViT-B/16's size, or with other settings of its towers, with random weights of a dtype."""
    torch.manual_seed(0)
    text = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS, **(text or {})}
    vision = {"patch_size": PATCH, **(vision or {})}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection_dim)).eval()
    return clip.to(getattr(torch, dtype))


def make_siglip(class_names: list[str]) -> SiglipModel:
    """SigLIP-base, whose sizes are transformers' defaults, with random weights and the words of some classes."""
    torch.manual_seed(0)
    words = len(make_tokenizer(class_names, starts=False))
    text = {"vocab_size": words, "bos_token_id": None, "eos_token_id": words - 1, "pad_token_id": words - 1}
    return SiglipModel(SiglipConfig(text_config=text)).eval()


def make_workload(classes: int, batch: int, image_size: int = IMAGE_SIZE, seed: int = 0) -> Workload:
    """Images, labels and class names from a seed."""
    rng = random.Random(seed)
    names: dict[str, None] = {}
    while len(names) < classes:
        words = [f"w{rng.randrange(10**6)}" for _ in range(rng.choice(WORDS_PER_NAME))]
        names[" ".join(words)] = None
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(batch, 3, image_size, image_size, generator=generator)
    return Workload(list(names), pixels, torch.randint(classes, (batch,), generator=generator))


def make_adapted(work: Workload, clip: Any = None, random_targets: bool = False, **settings: Any) -> Any:
    """The method's model in training mode on the workload's device, by default at its default configuration.

    Args:
        work: its classes.
        clip: what is adapted; a new one by default.
        random_targets: draw noise prompts and frozen text features, on whose values no cost depends, instead of
            encoding all texts several times.
        settings: of the configuration.
    """
    clip = clip or make_clip()
    config = ANPromptConfig(
        class_names=work.class_names,
        template=TEMPLATE,
        tokenizer_name_or_path=make_tokenizer(work.class_names, starts=family_of(clip).start > 0),
        init_noise_prompts=not random_targets,
        auto_mapping={"base_model_class": type(clip).__name__},
        **settings,
    )
    model: Any = get_peft_model(clip.to(work.pixels.device), config)
    if random_targets:
        classes, width = len(work.class_names), joint_width(model.config)
        features = F.normalize(torch.randn(2 * classes + config.num_noise_tokens, width), dim=-1)
        clean, perturbed, noise = features.split([classes, classes, config.num_noise_tokens])
        ids = class_ids(work.class_names, clip)
        image_head(model.get_base_model()).fill("default", Fitted(noise, clean, perturbed, ids))
    return model.train()


def make_step(way: str, size: Size, device: str, dtype: str, former: bool = False) -> Step:
    """One step of one of `WAYS`, with a model of its own and random noise prompts; `dtype` is that of autocast."""
    work = make_workload(size.classes, size.batch, size.image).to(device)
    kind, half = way.removeprefix(SIGLIP).removesuffix(BFLOAT16), way.endswith(BFLOAT16)
    clip = make_siglip(work.class_names) if way.startswith(SIGLIP) else None
    if kind == LORA:
        return lora_step(work, dtype, clip or make_clip(dtype="bfloat16" if half else "float32"))
    noise = size.tokens // 2
    tokens = {"num_virtual_tokens": size.tokens - noise, "num_noise_tokens": noise}
    model = make_adapted(work, clip, random_targets=True, **tokens, **(FORMER if former else {}))
    set_precision(model, "bf16" if half else "fp32")
    model.set_savings(SAVINGS[kind])
    return train_step(torch.compile(model) if kind == COMPILED else model, work, dtype)


def train_step(model: Any, work: Workload, dtype: str = "float32") -> Step:
    """One optimiser step of an adapted model, to be called again and again; `dtype` is that of autocast."""
    return optimiser_step(model, lambda: model(**work.images, labels=work.labels).loss, dtype)


def lora_step(work: Workload, dtype: str = "float32", clip: Any = None) -> Step:
    """The same step with PEFT's LoRA, rank 8 on queries and values of all layers of both towers."""
    config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"])
    clip = clip or make_clip()
    model: Any = get_peft_model(clip.to(work.pixels.device), config).train()
    ids = class_ids(work.class_names, clip).to(work.pixels.device)

    def loss() -> Tensor:
        return F.cross_entropy(model(input_ids=ids, **work.images).logits_per_image, work.labels)

    return optimiser_step(model, loss, dtype)


def optimiser_step(model: Any, loss: Callable[[], Tensor], dtype: str) -> Step:
    """Forward, backward, AdamW and zeroing, with the forward under autocast as Accelerate does it."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    device = trained[0].device.type
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=device == "cuda")
    scaler = torch.amp.GradScaler(device, enabled=dtype == "float16")

    def step() -> None:
        with torch.autocast(device, getattr(torch, dtype), enabled=dtype != "float32"):
            value = loss()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def class_ids(names: list[str], clip: Any) -> Tensor:
    """Token ids of the class texts for a model, cut at the longest where padding is not read: int64 [C, L]."""
    texts = [TEMPLATE.format(name) for name in names]
    return tokenize(texts, make_tokenizer(names, starts=family_of(clip).start > 0), clip.config)
