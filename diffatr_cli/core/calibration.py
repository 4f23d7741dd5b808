"""What a score is worth: probabilities fitted on labelled examples, and how sure a generated distribution is of its answer.

n examples, f features, S noise draws, N candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    "expected cosine of a match",
    "log of the candidates",
    "best candidate's cosine to learnt sounds",
    "cosine of the query to what these are called",
)
"""The features of `presence_features`, in order; fits of before know the first five to eight alone."""

BEFORE = 5
EXPECTED = PRESENCE.index("expected cosine of a match")
HEARD = PRESENCE.index("best candidate's cosine to learnt sounds")

SCORE = ("score", "logit of presence", "expected cosine of a match", "log of the query's words", "log of the candidates")
"""The features of `score_features`, in order; fits of before, and those of two sounds, know the first alone."""


def presence_features(
    cosine: np.ndarray,
    x0_hat: np.ndarray,
    strangeness: float = 0.0,
    expected: float = 0.0,
    candidates: int | None = None,
    heard: Sequence[float] | np.ndarray = (0.0, 0.0),
) -> np.ndarray:
    """How sure the model is that any candidate matches, as ten numbers.

    The concentration is the divergence from the uniform distribution, in nats; the movement is the mean total variation
    between a draw and the mean of all, 0 for a single draw.

    Args:
        cosine: (N,) of the query to each candidate.
        x0_hat: (S, N), one generated distribution a noise draw.
        strangeness: of the query (`bank.CaptionBank.strangeness`); 0 where nothing is known of it.
        expected: cosine of the query to what matches it (`bank.CaptionBank.expected`); 0 where nothing is known of that.
        candidates: how many there are to choose from, of which these N are the best: the best of many that do not match lies
            nearer than the best of few. None: these are all.
        heard: of the nearest candidate and the query (`bank.CaptionBank.heard`); 0 where nothing is known of that.
    """
    mean = x0_hat.mean(0)
    mean = mean / max(float(mean.sum()), 1e-12)
    peak = max(float(mean.max()), 1e-12)
    concentration = np.log(len(mean)) + float(mean @ np.log(np.maximum(mean, 1e-12)))
    movement = 0.5 * float(np.abs(x0_hat - x0_hat.mean(0)).sum(1).mean())
    many = np.log(max(1, len(cosine) if candidates is None else candidates))
    return np.array([cosine.max(), mean @ cosine, np.log(peak), concentration, movement, strangeness, expected, many, *heard])


def score_features(
    scores: np.ndarray, present: float | None = None, expected: float = 0.0, words: int = 1, candidates: int = 1
) -> np.ndarray:
    """What the probability of a match is read from, (n,) scores -> (n, 5): all but the score are the same for all candidates
    of a query, so that probabilities never contradict the order of scores.

    Args:
        present: the probability that any candidate matches; None where it was not fitted.
        expected: as in `presence_features`.
        words: of the query, where it is a text: a short label matches more than a sentence of several sounds.
        candidates: how many there are to choose from.
    """
    sure = np.clip(1.0 if present is None else present, 1e-4, 1 - 1e-4)
    of_query = np.log(sure / (1 - sure)), expected, np.log(max(1, words)), np.log(max(1, candidates))
    return np.column_stack([scores, np.broadcast_to(of_query, (len(scores), len(of_query)))])


SOFTNESS = 0.07
"""The temperature at which cosines become a distribution, that of the contrastive loss."""


def distribution_of_cosines(cosine: np.ndarray) -> np.ndarray:
    """In the place of x0_hat where a model has no diffusion: softmax(cosine / SOFTNESS), (N,) -> (1, N), one draw."""
    logits = np.asarray(cosine, np.float64) / SOFTNESS
    weights = np.exp(logits - logits.max())
    return np.asarray((weights / weights.sum())[None])


def presence_of_cosines(cosine: np.ndarray, candidates: int, heard: np.ndarray | None = None) -> np.ndarray:
    """`presence_features` of many queries at once that have cosines alone (`distribution_of_cosines`), (Q, N) -> (Q, 10).

    `heard`: (Q, 2), or None where nothing is known of that.
    """
    logits = cosine.astype(np.float64) / SOFTNESS
    mean = np.exp(logits - logits.max(1, keepdims=True))
    mean /= mean.sum(1, keepdims=True)
    concentration = np.log(cosine.shape[1]) + (mean * np.log(np.maximum(mean, 1e-12))).sum(1)
    nothing, many = np.zeros(len(cosine)), np.full(len(cosine), np.log(max(1, candidates)))
    peak = np.log(np.maximum(mean.max(1), 1e-12))
    heard = np.zeros((len(cosine), 2)) if heard is None else heard
    return np.column_stack([cosine.max(1), (mean * cosine).sum(1), peak, concentration, nothing, nothing, nothing, many, heard])


@dataclass(frozen=True)
class Calibration:
    """What a model's scores are worth, fitted on its validation split; None for what could not be fitted there.

    Of a model without diffusion the score is the cosine, and `distribution_of_cosines` stands for x0_hat.

    Attributes:
        text_to_audio: P(clip matches the text | `score_features` of cosine + weight * x0_hat).
        audio_to_text: P(text matches the clip | `score_features` of cosine + weight * x0_hat).
        audio_to_audio: P(both are the same kind of sound | cosine).
        presence: P(any candidate matches the text | `presence_features`).
        told_below: the probability of presence below which a search says that nothing matches.
        measured: what the judgement of presence reached on the validation split, each query judged by a fit on others.
        captions: P(any text of a list matches the clip | `presence_features`); `captions_told_below` and `captions_measured`
            as of presence.
    """

    text_to_audio: Logistic | None
    audio_to_text: Logistic | None
    audio_to_audio: Logistic | None
    presence: Logistic | None
    told_below: float = 0.5
    measured: Mapping[str, float] = field(default_factory=dict)
    captions: Logistic | None = None
    captions_told_below: float = 0.5
    captions_measured: Mapping[str, float] = field(default_factory=dict)

    def present(self, features: np.ndarray) -> float | None:
        """The probability that any candidate matches a text, from `presence_features`; None where it was not fitted."""
        return None if self.presence is None else float(of_known(self.presence, features))

    def fits(self, features: np.ndarray) -> float | None:
        """The probability that any text of a list matches a sound, as `present`."""
        return None if self.captions is None else float(of_known(self.captions, features))

    def to_json(self) -> dict[str, Any]:
        """As a document of plain numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The reverse of `to_json`.

        Raises:
            ValueError, TypeError, LookupError: it is no such document, or one of another number of features.
        """
        sizes = {"text_to_audio": (1, len(SCORE)), "audio_to_text": (1, len(SCORE)), "audio_to_audio": (1,)}
        sizes |= dict.fromkeys(("presence", "captions"), tuple(range(BEFORE, len(PRESENCE) + 1)))
        values: dict[str, Any] = {"captions": None, **document}
        for name, known in sizes.items():
            fit = values[name] = values[name] and Logistic(tuple(values[name]["weights"]), values[name]["bias"])
            if fit and len(fit.weights) not in known:
                raise ValueError(f"{name}: fitted on another number of features")
        return cls(**values)


def needs_captions(fit: Logistic) -> bool:
    """Whether a fit of `presence_features` goes by what was learnt, a cosine to expect or sounds: these have no neutral value."""
    return any(fit.weights[EXPECTED : EXPECTED + 1]) or needs_sounds(fit)


def needs_sounds(fit: Logistic) -> bool:
    """Whether it goes by learnt sounds."""
    return any(fit.weights[HEARD:])


def of_known(fit: Logistic, features: np.ndarray) -> np.ndarray:
    """A fit's probabilities by the features that it knows, which are the first of (..., f)."""
    return fit(features[..., : len(fit.weights)])
