"""The two objectives: the contrastive loss of phase one (Eq. 1, 2, 7, 8) and the generation loss of phase two (Eq. 6).

B batch, N candidates, D embedding size. Losses are computed in float32 at least, whatever the precision of their inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def at_least_float32(x: Tensor) -> Tensor:
    """x in its own type, or float32 where that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cosine_similarity(query: Tensor, candidates: Tensor) -> Tensor:
    """Eq. 7: s(t, a) of every query (Q, D) with every candidate (N, D) -> (Q, N), within [-1, 1] up to rounding."""
    return functional.normalize(at_least_float32(query), dim=1) @ functional.normalize(at_least_float32(candidates), dim=1).T


def posterior(similarity: Tensor, temperature: float) -> Tensor:
    """Eq. 1: p(candidate | query) = softmax of similarity / tau over the candidates, (Q, N) -> (Q, N)."""
    return (at_least_float32(similarity) / temperature).softmax(1)


def nt_xent(audio: Tensor, text: Tensor, temperature: float, clip_ids: Tensor | None = None) -> Tensor:
    """Eq. 8: NT-Xent over a batch of pairs, -1/2 E[log p(a|t) + log p(t|a)]; it is Eq. 2 with the cosine of Eq. 7 inside Eq. 1.

    Two rows of the same clip hold captions of the same sound: each is left out of the other's denominators, in both
    directions, since neither is a negative. So are a mixture of clips and each of its parts, or a mixture of some of them: what
    the one caption names is heard in the other clip. Two mixtures that each have a part of their own are negatives.

    Args:
        audio: (B, D) embeddings, of any norm and precision.
        text: (B, D) embeddings; row i is a caption of audio row i.
        temperature: tau > 0.
        clip_ids: (B,) integers, equal where rows come from the same clip, or (B, P), of a row's clip all parts, at least one,
            and -1 in the places that are left; None takes all rows as different clips.

    Returns:
        A scalar in nats, float32 or float64.

    Raises:
        ValueError: shapes disagree or the temperature is not positive.
    """
    if audio.shape != text.shape or audio.ndim != 2:
        raise ValueError(f"audio and text are (B, D) of the same shape, got {tuple(audio.shape)} and {tuple(text.shape)}")
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    logits = cosine_similarity(text, audio) / temperature
    if clip_ids is not None:
        clip_ids = clip_ids.to(logits.device)
        sibling = _one_in_the_other(clip_ids if clip_ids.ndim == 2 else clip_ids[:, None])
        sibling.fill_diagonal_(False)
        logits = logits.masked_fill(sibling, -torch.inf)
    pairs = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, pairs) + functional.cross_entropy(logits.T, pairs)) / 2


def _one_in_the_other(parts: Tensor) -> Tensor:
    """(B, P) integers, -1 for none -> (B, B): whether all of one row's are among the other's."""
    same = parts[:, None, :, None] == parts[None, :, None, :]  # (B, B, P, P)
    within = (same.any(3) | (parts < 0).unsqueeze(1)).all(2)
    return within | within.T


def generation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Eq. 6: the Kullback-Leibler divergence between x_0 and x0_hat = softmax(logits), mean over the batch.

    The paper prints KL(x0_hat | x_0), which is infinite wherever x_0 is zero and x0_hat is not, so for every one-hot x_0.
    This is the direction that is finite and does what the text says, maximise the likelihood: KL(x_0 || x0_hat), which
    for a one-hot x_0 is the cross-entropy.

    Args:
        logits: (B, N), the denoiser's output.
        target: (B,) indices of the true candidates, or (B, N) distributions x_0.

    Returns:
        A scalar in nats, float32 or float64.

    Raises:
        ValueError: the target's shape fits neither form.
    """
    logits = at_least_float32(logits)
    if target.shape == logits.shape[:1] and not target.is_floating_point():
        return functional.cross_entropy(logits, target)
    if target.shape == logits.shape and target.is_floating_point():
        return functional.kl_div(logits.log_softmax(1), target.to(logits.dtype), reduction="batchmean")
    got = f"{target.dtype} {tuple(target.shape)}"
    raise ValueError(f"the target of logits {tuple(logits.shape)} is an index or a distribution a row, got {got}")
