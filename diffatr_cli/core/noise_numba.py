"""The noise of `noise` on the CPU, in numba: for more of it than torch's operations draw while numba loads."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .compiled import compiled
from .noise import ANGLE, COSINE, LN2, LOG, MULTIPLIERS, ROOT_HALF, ROUNDS, SINE, WEYL, WORD
from .threads import parallel_for

BLOCKS = 512  # counters that are gone through together: what is between the loops stays in the first-level cache

_WORD, _HIGH = np.uint64(WORD), np.uint64(32)
_M0, _M1 = (np.uint64(value) for value in MULTIPLIERS)
_W0, _W1 = (np.uint64(value) for value in WEYL)
_LOG = tuple(np.float32(value) for value in LOG)
_LN2 = tuple(np.float32(value) for value in LN2)
_SINE = tuple(np.float32(value) for value in SINE)
_COSINE = tuple(np.float32(value) for value in COSINE)
_ANGLE, _TINY = np.float32(ANGLE), np.float32(2.0**-23)
_HALF, _ONE, _TWO = np.float32(0.5), np.float32(1), np.float32(2)
_ROOT_HALF = np.int32(ROOT_HALF)


def normals_numba(seed: int, ids: Tensor, n: int, stream: int) -> Tensor:
    """(Q, n) float32 on the CPU; the arguments are those of `noise.normals_eager`."""
    out = torch.empty(len(ids), n)
    arrays = ids.numpy().view(np.uint64), out.numpy()
    parts = max(1, min(len(ids), 8 * torch.get_num_threads()))
    ends = [len(ids) * part // parts for part in range(parts + 1)]
    key = np.uint64(seed & WORD), np.uint64(seed >> 32), np.uint64(stream)
    parallel_for(lambda span: _normals(*key, *arrays, *span), list(pairwise(ends)))
    return out


@compiled
def _box_muller(a: Any, b: Any, u: Any, bits: Any, cosines: Any, sines: Any) -> None:
    """Normals of words a and b, both uint32; u is room for as many float32, and bits the same memory as int32."""
    for i in range(len(a)):
        u[i] = (np.float32(np.int32(a[i] >> np.uint32(9))) + _HALF) * _TINY
    for i in range(len(a)):
        exponent = np.int32(bits[i] - _ROOT_HALF) >> np.int32(23)
        sines[i] = np.float32(exponent)
        bits[i] = np.int32(bits[i] - np.int32(exponent << np.int32(23)))
    for i in range(len(a)):
        f, e = u[i] - _ONE, sines[i]
        s = f / (_TWO + f)
        z = s * s
        w = z * z
        half = _HALF * f * f
        log = s * (half + z * (_LOG[0] + w * _LOG[2]) + w * (_LOG[1] + w * _LOG[3])) + e * _LN2[1] - half + f + e * _LN2[0]
        u[i] = np.sqrt(-_TWO * log)
    for i in range(len(a)):
        quarter = np.uint32(b[i] + np.uint32(2**29)) >> np.uint32(30)
        x = np.float32(np.int32(b[i] - np.uint32(quarter << np.uint32(30)))) * _ANGLE
        z = x * x
        sine = x + x * z * (_SINE[0] + z * (_SINE[1] + z * _SINE[2]))
        cosine = _ONE - _HALF * z + z * z * (_COSINE[0] + z * (_COSINE[1] + z * _COSINE[2]))
        odd = quarter & np.uint32(1)
        along, across = (sine, cosine) if odd else (cosine, sine)
        cosines[i] = u[i] * (-along if quarter == 1 or quarter == 2 else along)
        sines[i] = u[i] * (-across if quarter >= 2 else across)


@compiled
def _normals(low: Any, high: Any, stream: Any, ids: Any, out: Any, start: int, stop: int) -> None:
    """Rows start..stop of out (Q, n)."""
    n = out.shape[1]
    words = np.empty((4, BLOCKS), np.uint32)
    u = np.empty(BLOCKS, np.float32)
    bits = u.view(np.int32)
    normals = np.empty((4, BLOCKS), np.float32)
    for row in range(start, stop):
        id_low, id_high = ids[row] & _WORD, ids[row] >> _HIGH
        for first in range(0, -(-n // 4), BLOCKS):
            for i in range(BLOCKS):
                a, b, c, d = np.uint64(first + i), stream, id_low, id_high
                k0, k1 = low, high
                for _ in range(ROUNDS):
                    left, right = _M0 * a, _M1 * c
                    a, b, c, d = (right >> _HIGH) ^ b ^ k0, right & _WORD, (left >> _HIGH) ^ d ^ k1, left & _WORD
                    k0, k1 = (k0 + _W0) & _WORD, (k1 + _W1) & _WORD
                words[0, i], words[1, i], words[2, i], words[3, i] = a, b, c, d
            _box_muller(words[0], words[1], u, bits, normals[0], normals[1])
            _box_muller(words[2], words[3], u, bits, normals[2], normals[3])
            for i in range(min(4 * BLOCKS, n - 4 * first)):
                out[row, 4 * first + i] = normals[i % 4, i // 4]
