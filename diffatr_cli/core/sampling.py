"""How x_0 is sampled when candidates are scored: one object, handed from whoever knows the recipe to whoever samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

X0 = Literal["softmax", "clip"]
Objective = Literal["diffusion", "discriminative"]
"""What phase two trains: to denoise x_k, or the same network with x_k = 0."""

FOLDER_SHORTLIST = 100
"""Files that a search of a folder re-ranks where the recipe says all: a folder may hold a million."""


class _Evaluation(Protocol):
    @property
    def steps(self) -> int | None: ...
    @property
    def eta(self) -> float: ...
    @property
    def draws(self) -> int: ...
    @property
    def shortlist(self) -> int | None: ...


class _Diffusion(Protocol):
    @property
    def x0(self) -> X0: ...
    @property
    def objective(self) -> Objective: ...


class SamplingRecipe(Protocol):
    """What `Sampling.of` reads of a recipe: its sections `evaluation` and `diffusion`."""

    @property
    def evaluation(self) -> _Evaluation: ...
    @property
    def diffusion(self) -> _Diffusion: ...


@dataclass(frozen=True)
class Sampling:
    """The settings of a sampler.

    Attributes:
        steps: levels that DDIM visits; None visits all of the chain.
        eta: 0 is deterministic DDIM, 1 ancestral sampling.
        x0: how logits become x0_hat.
        draws: independent noise draws whose x0_hat are averaged.
        shortlist: candidates that are sampled over, the best by cosine; None takes all.
        seed: of the noise.
        noise: x_K is noise; False, for a model trained without diffusion, makes it zero, in the one step that there is.

    Raises:
        ValueError: a setting out of its range, or more than one step or draw without noise.
    """

    steps: int | None = None
    eta: float = 0.0
    x0: X0 = "softmax"
    draws: int = 1
    shortlist: int | None = None
    seed: int = 0
    noise: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie between 0 and 1, got {self.eta}")
        for name in ("steps", "draws", "shortlist"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not self.noise and (self.steps, self.draws) != (1, 1):
            raise ValueError("this model was trained without diffusion: it takes one step and no noise draws")

    @classmethod
    def of(cls, recipe: SamplingRecipe, **overrides: Any) -> Self:
        """A recipe's settings, with those overrides that are not None in their place.

        Raises:
            ValueError: a setting out of its range.
            TypeError: an override of another name.
        """
        section = recipe.evaluation
        settings: dict[str, Any] = {
            "steps": section.steps,
            "eta": section.eta,
            "x0": recipe.diffusion.x0,
            "draws": section.draws,
            "shortlist": section.shortlist,
        }
        if recipe.diffusion.objective == "discriminative":
            settings |= {"steps": 1, "eta": 0.0, "draws": 1, "noise": False}
        return cls(**settings | {name: value for name, value in overrides.items() if value is not None})

    def but(self, **overrides: Any) -> Self:
        """These settings, with those overrides that are not None in their place. Raises as `of`."""
        return type(self)(**vars(self) | {name: value for name, value in overrides.items() if value is not None})

    def for_folder(self, **overrides: Any) -> Self:
        """These settings for searching a folder, whose shortlist is never everything. Raises as `of`."""
        return self.but(
            **{"shortlist": self.shortlist or FOLDER_SHORTLIST} | {k: v for k, v in overrides.items() if v is not None}
        )
