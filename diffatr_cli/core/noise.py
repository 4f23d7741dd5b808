"""Standard normal noise that depends on (seed, query, draw, step, candidate) alone, drawn where it is needed.

The generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): it keeps no state, so that any
value can be drawn without those before it, on any device, by any number of threads. Four candidates share a counter:

- key: the seed, lowest word first.
- counter: candidate // 4; draw + 65536 step; the query's id, lowest word first.

Of the four words of a counter, the first pair gives the noise of candidates 0 and 1 by Box and Muller's transform, the second
pair that of 2 and 3: of words a and b, r = sqrt(-2 ln((a // 512 + 1/2) / 2^23)) times the cosine and the sine of b / 2^32 turns.
No value lies further out than sqrt(-2 ln 2^-24), 5.77.

All ways of computing it draw the same words. They take the logarithm, the cosine and the sine in float32 by the same
polynomials, so that they differ by rounding alone: by at most `ROUNDING` from the values above, in exact arithmetic.

Q queries, N candidates, S listed ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

ROUNDING = 2e-6
"""How far a value may lie from what exact arithmetic gives."""
DRAWS = STEPS = 2**16  # that a counter tells apart
CANDIDATES = 2**34  # likewise
SMALL = 2**15  # values of one call up to which loading numba takes longer than the work
WORD = 2**32 - 1

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

# ln(1 + f), f in [sqrt(1/2) - 1, sqrt(2) - 1): the minimax polynomial of FreeBSD's logf, and ln 2 as a sum whose first part is
# exact times a small integer.
LOG = (0.66666662693023682, 0.40000972151756287, 0.28498786687850952, 0.24279078841209412)
LN2 = (6.9313812256e-01, 9.0580006145e-06)
ROOT_HALF = 0x3F3504F3  # the bits of sqrt(1/2) as a float32
# sin(x) and cos(x) for |x| <= pi/4: those of the Cephes library.
SINE = (-1.6666654611e-01, 8.3321608736e-03, -1.9515295891e-04)
COSINE = (4.166664568298827e-02, -1.388731625493765e-03, 2.443315711809948e-05)
ANGLE = 2 * math.pi / 2**32  # radians of the smallest part of a turn


def query_noise(
    seed: int,
    query_ids: Sequence[int],
    n: int,
    draw: int = 0,
    places: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Callable[[int], Tensor]:
    """Standard normal noise for `ddim_sample` that depends on (seed, query id, draw, step) alone, never on the batch.

    Args:
        seed: any integer; the lowest 64 bits count.
        query_ids: one integer a query, the lowest 64 bits count.
        n: values a query; the first m of n are what n = m gives.
        draw: which of several independent noises, below `DRAWS`.
        places: (Q, S) of n candidates; their noise is drawn and no other. None draws all.
        device: on which it is drawn.

    Returns:
        A function of the step i, below `STEPS` -> (Q, n), or (Q, S) of the places, float32.

    Raises:
        ValueError: a draw or a step that is too high, or too many candidates.
    """
    device = torch.device(device)
    if not 0 <= draw < DRAWS or n > CANDIDATES:
        raise ValueError(f"noise has {DRAWS} draws and {CANDIDATES} candidates at most, got draw {draw} of {n} candidates")
    low = 2**64 - 1
    ids = torch.from_numpy(np.array([int(i) & low for i in query_ids], np.uint64).view(np.int64)).to(device)
    listed = None if places is None else places.to(device)

    def noise(step: int) -> Tensor:
        if not 0 <= step < STEPS:
            raise ValueError(f"noise has {STEPS} steps at most, got step {step}")
        return _normals(seed & low, ids, n, draw + DRAWS * step, listed)

    return noise


def _normals(seed: int, ids: Tensor, n: int, stream: int, places: Tensor | None) -> Tensor:
    """The noise of `query_noise`, in the way that suits the device and the amount."""
    if ids.device.type == "cuda":
        try:
            from .noise_triton import normals_triton
        except ImportError:  # torch without Triton
            return normals_eager(seed, ids, n, stream, places)
        return normals_triton(seed, ids, n, stream, places)
    if ids.device.type == "cpu" and places is None and len(ids) * n > SMALL:
        from .noise_numba import normals_numba

        return normals_numba(seed, ids, n, stream)
    return normals_eager(seed, ids, n, stream, places)


def normals_eager(seed: int, ids: Tensor, n: int, stream: int, places: Tensor | None = None) -> Tensor:
    """The noise by torch's own operations, on any device: (Q, n) float32, or (Q, S) of the places.

    Args:
        seed: 64 bits.
        ids: (Q,) int64, whose bits are the ids.
        stream: the counter's second word.
    """
    device = ids.device
    block = torch.arange(-(-n // 4), device=device)[None] if places is None else places >> 2
    counter = block, torch.tensor(stream, device=device), (ids & WORD)[:, None], ((ids >> 32) & WORD)[:, None]
    words = philox(counter, (seed & WORD, seed >> 32))
    four = torch.stack([*_box_muller(*words[:2]), *_box_muller(*words[2:])], -1)  # (Q, blocks, 4)
    if places is None:
        return four.view(len(ids), 4 * block.shape[1])[:, :n]
    return four.gather(2, (places & 3)[..., None]).squeeze(2)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox4x32-10: four words out of a counter of four and a key of two. Words are int64 tensors of one shape, or broadcast."""
    a, b, c, d = counter
    first, second = key
    for _ in range(ROUNDS):
        # Products of two words overflow int64 and wrap, which leaves their bits as they are.
        left, right = MULTIPLIERS[0] * a, MULTIPLIERS[1] * c
        a, b, c, d = ((right >> 32) & WORD) ^ b ^ first, right & WORD, ((left >> 32) & WORD) ^ d ^ second, left & WORD
        first, second = (first + WEYL[0]) & WORD, (second + WEYL[1]) & WORD
    return [a, b, c, d]


def _box_muller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two normals of two words, as the module says."""
    u = ((a >> 9).float() + 0.5) * 2.0**-23
    bits = u.view(torch.int32)
    exponent = (bits - ROOT_HALF) >> 23
    f = (bits - (exponent << 23)).view(torch.float32) - 1
    s = f / (2 + f)
    z = s * s
    w = z * z
    half = 0.5 * f * f
    e = exponent.float()
    log = s * (half + z * (LOG[0] + w * LOG[2]) + w * (LOG[1] + w * LOG[3])) + e * LN2[1] - half + f + e * LN2[0]
    r = (-2 * log).sqrt()

    quarter = ((b + 2**29) & WORD) >> 30
    rest = b - (quarter << 30)
    x = torch.where(rest >= 2**31, rest - 2**32, rest).float() * ANGLE
    z = x * x
    sine = x + x * z * (SINE[0] + z * (SINE[1] + z * SINE[2]))
    cosine = 1 - 0.5 * z + z * z * (COSINE[0] + z * (COSINE[1] + z * COSINE[2]))
    odd = (quarter & 1) == 1
    along, across = torch.where(odd, sine, cosine), torch.where(odd, cosine, sine)
    return r * torch.where((quarter == 1) | (quarter == 2), -along, along), r * torch.where(quarter >= 2, -across, across)
