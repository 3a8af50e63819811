"""The anchored classifier: logistic regression on frozen image features that starts at the class texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .method.class_texts import as_read

STRENGTHS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
"""What the folds choose among, from the strongest pull to the class texts on."""
WITHOUT_FOLDS = 0.03
"""The strength where no class has two images: folds of single images leave nothing to learn their class from."""
MOST_FOLDS = 4
SEARCHED_TO, SOLVED_TO = 1e-4, 1e-10  # largest entry of the gradient, in the folds and in the end
NEWTON_STEPS, CONJUGATE_STEPS = 200, 1000


class Anchored(NamedTuple):
    """A classifier's rows T + D `[C, d]`, float64, and the strength lambda that held them to the texts T."""

    rows: Tensor
    strength: float


@torch.no_grad()
def fit_anchored(
    images: Tensor,
    labels: Tensor,
    texts: Tensor,
    scale: float | Tensor,
    class_weights: Tensor | None = None,
    strength: float | None = None,
    seed: int = 0,
) -> Anchored:
    """Minimise `mean_i CE(scale * x_i (T + D)^T, y_i) + strength * |D|^2` over D; it is 0 for classes without images.

    The problem is convex. Newton's method solves it in float64, where the images are or, on devices without float64,
    on the CPU. Its steps come from conjugate gradients, which need no matrix of second derivatives.

    Relatives are CLAP (Silva-Rodriguez et al., 2024, arXiv 2312.12730) and LP++ (Huang et al., 2024, arXiv
    2404.02285). CLAP pulls a linear classifier to the texts with a strength for each class, which it learns by an
    augmented Lagrangian from the zero-shot answers, and trains with SGD. LP++ adds to the image prototypes the texts
    times learned factors of each class. Here one strength, found by folds over the shots, holds all classes, and the
    minimum is reached.

    Args:
        images (`Tensor`): x, `[n, d]`, the frozen CLIP's normalised features.
        labels (`Tensor`): y, int64 `[n]`, positions in the C classes.
        texts (`Tensor`): T, `[C, d]`, the frozen CLIP's class features.
        scale (`float` or `Tensor`): exp of CLIP's `logit_scale`.
        class_weights (`Tensor`, *optional*): `[C]`, positive; the mean is weighted by those of the labels.
        strength (`float`, *optional*): lambda; by default what [`choose_strength`] finds.
        seed (`int`): of the folds.

    Raises:
        ValueError: if there are no images, a number is not finite, or the strength is not positive.
    """
    if not len(images):
        raise ValueError("The anchored classifier needs at least one image with a label; there is none.")
    if strength is not None and not 0 < strength < float("inf"):
        raise ValueError(f"strength={strength!r} of the anchored classifier must be a positive, finite number.")
    if not (images.isfinite().all() and texts.isfinite().all()):
        raise ValueError("The anchored classifier needs finite features; some of these are NaN or infinite.")
    device = "cpu" if images.device.type == "mps" else images.device
    images, texts, labels = images.to(device, torch.float64), texts.to(device, torch.float64), labels.to(device)
    weights = torch.ones(len(texts)) if class_weights is None else class_weights
    shots = Shots(images * float(scale), labels, texts, weights.to(images)[labels])
    if strength is None:
        strength = choose_strength(shots, seed)
    return Anchored(texts + _solve(shots, strength, SOLVED_TO), strength)


class Shots(NamedTuple):
    """n images `scale * x` `[n, d]`, their labels `[n]`, the C texts `[C, d]`, and the images' weights `[n]`."""

    images: Tensor
    labels: Tensor
    texts: Tensor
    weights: Tensor

    def single(self) -> Shots:
        """Return them in float32."""
        return Shots(self.images.float(), self.labels, self.texts.float(), self.weights.float())

    def where(self, mask: Tensor) -> Shots:
        """Return those of a mask `[n]`."""
        return Shots(self.images[mask], self.labels[mask], self.texts, self.weights[mask])


def choose_strength(shots: Shots, seed: int) -> float:
    """Return which of [`STRENGTHS`] has the least cross entropy of left-out shots, up to where it begins to rise.

    There are 4 folds, or as many as the largest class has images, with the images of a class dealt out one by one; a
    class's only image is always learned from. Where no class has two it is [`WITHOUT_FOLDS`].
    """
    fold = folds(shots.labels, seed)
    shots = shots.single()
    parts = [(shots.where(fold != each), shots.where(fold == each)) for each in range(int(fold.max()) + 1)]
    best, least = WITHOUT_FOLDS, float("inf")
    deltas = [torch.zeros_like(shots.texts) for _ in parts]
    for strength in STRENGTHS if parts else ():
        found = 0.0
        for each, (learn, left_out) in enumerate(parts):
            deltas[each] = _solve(learn, strength, SEARCHED_TO, deltas[each])
            found += float(_losses(left_out, deltas[each]) @ left_out.weights)
        if found >= least:
            break
        best, least = strength, found
    return best


def folds(labels: Tensor, seed: int) -> Tensor:
    """Return the fold that leaves each of n shots out, int64 `[n]`; -1 for a class's only one."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    counts = torch.bincount(labels)
    count = min(MOST_FOLDS, int(counts.max()))
    fold = torch.empty_like(labels)
    for label in counts.nonzero()[:, 0]:
        rows = order[labels[order] == label]
        fold[rows] = torch.arange(len(rows), device=rows.device) % count if len(rows) > 1 else -1
    return fold


def _solve(shots: Shots, strength: float, tolerance: float, start: Tensor | None = None) -> Tensor:
    """Return D `[C, d]` where no entry of the gradient exceeds a tolerance, by Newton's method."""
    images, labels, texts, weights = shots
    share = (weights / weights.sum())[:, None]  # n, 1
    learned = (torch.bincount(labels, minlength=len(texts)) > 0).to(texts)[:, None]  # C, 1
    targets = F.one_hot(labels, len(texts)).to(texts)  # n, C
    delta = torch.zeros_like(texts) if start is None else start
    rounding = 10 * torch.finfo(texts.dtype).eps

    def value(at: Tensor) -> Tensor:
        return _losses(shots, at) @ share[:, 0] + strength * at.pow(2).sum()

    for _ in range(NEWTON_STEPS):
        p = (images @ (texts + delta).T).softmax(dim=1)  # n, C
        gradient = learned * ((share * (p - targets)).T @ images) + 2 * strength * delta
        if gradient.abs().max() <= tolerance:
            return delta

        def curvature(v: Tensor, p: Tensor = p) -> Tensor:
            pv = p * (images @ v.T)
            return learned * ((share * (pv - p * pv.sum(dim=1, keepdim=True))).T @ images) + 2 * strength * v

        step = _conjugate_gradients(curvature, -gradient)
        before, slope, length = value(delta), (gradient * step).sum(), 1.0
        while value(delta + length * step) > before * (1 + rounding) + 1e-4 * length * slope and length > 1e-6:
            length /= 2
        delta = delta + length * step
    raise ValueError(f"The anchored classifier found no minimum with strength={strength}. Choose a larger one.")


def _conjugate_gradients(curvature: Callable[[Tensor], Tensor], target: Tensor) -> Tensor:
    """Solve `curvature(x) = target`, the closer the smaller the target is."""
    x, rest = torch.zeros_like(target), target
    direction, size = rest, rest.pow(2).sum()
    enough = size * min(0.25, float(size) ** 0.25) ** 2
    for _ in range(CONJUGATE_STEPS):
        bent = curvature(direction)
        length = size / (direction * bent).sum()
        x, rest = x + length * direction, rest - length * bent
        before, size = size, rest.pow(2).sum()
        if size <= enough:
            break
        direction = rest + size / before * direction
    return x


def _losses(shots: Shots, delta: Tensor) -> Tensor:
    return F.cross_entropy(shots.images @ (shots.texts + delta).T, shots.labels, reduction="none")


def known_classes(asked: Sequence[str], names: Sequence[str]) -> tuple[list[int], list[int]]:
    """Return which asked classes are among K names, as positions in the asked ones and in the names.

    Names are compared as CLIP's tokenizer reads them.
    """
    rows = {as_read(name): row for row, name in enumerate(names)}
    at = [position for position, name in enumerate(asked) if as_read(name) in rows]
    return at, [rows[as_read(asked[position])] for position in at]


def join(logits: Tensor, at: Tensor, images: Tensor, rows: Tensor, scale: float | Tensor, weight: float) -> Tensor:
    """Return a method's logits `[B, C]`, with a classifier's added where it knows the classes.

    Among the K classes it knows, `log p(method) + weight * log p(classifier)` decide, each of a softmax over these
    classes. If there are others, see [`share_among`].

    Args:
        logits (`Tensor`): the method's, `[B, C]`.
        at (`Tensor`): int64 `[K]`, positions of the known classes.
        images (`Tensor`): the frozen CLIP's normalised features, `[B, d]`.
        rows (`Tensor`): the classifier's of the known classes, `[K, d]`.
        scale (`float` or `Tensor`): exp of CLIP's `logit_scale`.
        weight (`float`): of the classifier.
    """
    if not len(at):
        return logits
    learned = (scale * images @ rows.T).log_softmax(dim=-1)
    own = logits if len(at) == logits.shape[-1] else logits[:, at]
    return share_among(logits, at, own.log_softmax(dim=-1) + weight * learned.to(logits))


def share_among(logits: Tensor, at: Tensor, learned: Tensor) -> Tensor:
    """Return logits `[B, C]` by which K known classes share their joint probability as `learned` logits `[B, K]` say.

    With p of the softmax of the logits and q that of the learned ones, class c has `q(c) * sum_k p(k)`, k over the
    known classes at the positions `at` `[K]`, if it is known, else `p(c)`. If all are known these are the learned
    logits, if none is the logits.
    """
    if not len(at) or len(at) == logits.shape[-1]:
        return learned if len(at) else logits
    shares = logits.log_softmax(dim=-1)
    together = shares[:, at].logsumexp(dim=-1, keepdim=True)
    return shares.index_copy(1, at, together + learned.log_softmax(dim=-1))
