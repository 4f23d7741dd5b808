"""What a score is worth: probabilities fitted on labelled examples, and how sure a generated distribution is of its answer.

n examples, f features, S noise draws, N candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

RIDGE = 1e-4
"""Weight of the squared coefficients of standardised features beside the mean log-likelihood: keeps separable fits finite."""


@dataclass(frozen=True)
class Logistic:
    """P(label | features) = 1 / (1 + exp(-(weights . features + bias)))."""

    weights: tuple[float, ...]
    bias: float

    def __call__(self, features: ArrayLike) -> np.ndarray:
        """(..., f) -> probabilities (...)."""
        logit = np.asarray(features, dtype=np.float64) @ np.array(self.weights) + self.bias
        return np.asarray(0.5 * (1 + np.tanh(logit / 2)))  # which does not overflow

    @classmethod
    def fit(cls, features: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> Self:
        """Maximum likelihood with a small ridge, by Newton's method on standardised features.

        With one feature, this is Platt scaling (Platt 1999).

        Args:
            features: (n, f), finite.
            labels: (n,) booleans, of both kinds.
            weights: (n,) how much each example counts; None counts all the same.

        Raises:
            ValueError: examples of one label only, or no example.
        """
        labels = np.asarray(labels, dtype=bool)
        if labels.all() or not labels.any():
            raise ValueError("a probability can be fitted only to examples of both labels")
        share = np.full(len(labels), 1 / len(labels)) if weights is None else np.asarray(weights) / np.sum(weights)
        mean = share @ features
        spread = np.sqrt(share @ (features - mean) ** 2)
        spread[spread < 1e-12] = np.inf  # a constant says nothing: its coefficient becomes 0
        design = np.concatenate([(features - mean) / spread, np.ones((len(features), 1))], 1)
        ridge = np.diag([RIDGE] * features.shape[1] + [0.0])
        signs = np.where(labels, -1.0, 1.0)

        def loss(beta: np.ndarray) -> float:
            return float(share @ np.logaddexp(0, signs * (design @ beta)) + beta @ ridge @ beta / 2)

        beta = np.zeros(design.shape[1])
        for _ in range(100):
            p = 0.5 * (1 + np.tanh(design @ beta / 2))
            gradient = design.T @ (share * (p - labels)) + ridge @ beta
            hessian = (design * (share * p * (1 - p))[:, None]).T @ design + ridge
            step = np.linalg.solve(hessian + 1e-12 * np.eye(len(beta)), gradient)
            before, size = loss(beta), 1.0
            while loss(beta - size * step) > before - 1e-4 * size * float(gradient @ step) and size > 1e-6:
                size /= 2  # a full step overshoots where the likelihood is nearly flat
            beta = beta - size * step
            if np.abs(gradient).max() < 1e-10:
                break
        coefficients = beta[:-1] / spread
        return cls(tuple(coefficients.tolist()), float(beta[-1] - coefficients @ mean))


PRESENCE = (
    "best cosine",
    "mean cosine under x0_hat",
    "log of x0_hat's peak",
    "concentration",
    "movement between draws",
    "strangeness of the query",
)
"""The features of `presence_features`, in order; fits of before know the first five alone."""

BEFORE = 5


def presence_features(cosine: np.ndarray, x0_hat: np.ndarray, strangeness: float = 0.0) -> np.ndarray:
    """How sure the model is that any candidate matches, as six numbers.

    The concentration is the divergence from the uniform distribution, in nats; the movement is the mean total variation
    between a draw and the mean of all, 0 for a single draw.

    Args:
        cosine: (N,) of the query to each candidate.
        x0_hat: (S, N), one generated distribution a noise draw.
        strangeness: of the query (`bank.CaptionBank.strangeness`); 0 where nothing is known of it.
    """
    mean = x0_hat.mean(0)
    mean = mean / max(float(mean.sum()), 1e-12)
    peak = max(float(mean.max()), 1e-12)
    concentration = np.log(len(mean)) + float(mean @ np.log(np.maximum(mean, 1e-12)))
    movement = 0.5 * float(np.abs(x0_hat - x0_hat.mean(0)).sum(1).mean())
    return np.array([cosine.max(), mean @ cosine, np.log(peak), concentration, movement, strangeness])


SOFTNESS = 0.07
"""The temperature at which cosines become a distribution, that of the contrastive loss."""


def distribution_of_cosines(cosine: np.ndarray) -> np.ndarray:
    """In the place of x0_hat where a model has no diffusion: softmax(cosine / SOFTNESS), (N,) -> (1, N), one draw."""
    logits = np.asarray(cosine, np.float64) / SOFTNESS
    weights = np.exp(logits - logits.max())
    return np.asarray((weights / weights.sum())[None])


@dataclass(frozen=True)
class Calibration:
    """What a model's scores are worth, fitted on its validation split; None for what could not be fitted there.

    Of a model without diffusion the score is the cosine, and `distribution_of_cosines` stands for x0_hat.

    Attributes:
        text_to_audio: P(clip matches the text | cosine + weight * x0_hat).
        audio_to_text: P(text matches the clip | cosine + weight * x0_hat).
        audio_to_audio: P(both are the same kind of sound | cosine).
        presence: P(any candidate matches the text | `presence_features`).
        told_below: the probability of presence below which a search says that nothing matches.
        measured: what the judgement of presence reached on the validation split, each query judged by a fit on others.
    """

    text_to_audio: Logistic | None
    audio_to_text: Logistic | None
    audio_to_audio: Logistic | None
    presence: Logistic | None
    told_below: float = 0.5
    measured: Mapping[str, float] = field(default_factory=dict)

    def present(self, features: np.ndarray) -> float | None:
        """The probability that any candidate matches, from `presence_features`; None where it was not fitted."""
        if self.presence is None:
            return None
        return float(self.presence(features[: len(self.presence.weights)]))

    def to_json(self) -> dict[str, Any]:
        """As a document of plain numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The reverse of `to_json`.

        Raises:
            ValueError, TypeError, LookupError: it is no such document, or one of another number of features.
        """
        fits = ("text_to_audio", "audio_to_text", "audio_to_audio", "presence")
        values: dict[str, Any] = {**document}
        for name in fits:
            values[name] = document[name] and Logistic(tuple(document[name]["weights"]), document[name]["bias"])
        read = cls(**values)
        for name in fits:
            if (fit := getattr(read, name)) and len(fit.weights) not in ((BEFORE, len(PRESENCE)) if name == "presence" else (1,)):
                raise ValueError(f"{name}: fitted on another number of features")
        return read
