"""3x3 convolutions by Winograd's minimal filtering: the same numbers to about 1e-6 for a quarter of the multiplications.

The direct convolution already runs at the processor's peak, so that only fewer operations make it faster. The map is cut
into tiles of 4 x 4 outputs; each tile's 6 x 6 inputs are transformed, multiplied with the transformed weights (36 matrix
products over all tiles) and transformed back. Maps two bins wide take tiles of 4 x 2.
Source: Lavin & Gray 2016, "Fast Algorithms for Convolutional Neural Networks", F(4, 3) and F(2, 3).

B batch, T frames, M mels, C channels in, O channels out, n tiles, w outputs a tile across, L any length.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from .kernels import jit
from .threads import parallel_for

TALL = 4  # frames a tile puts out; it reads two more

# G of the two algorithms: three taps -> the points at which the filter's polynomial is evaluated.
_TAPS = {
    4: np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
    2: np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
}


# Each loop writes one row and reads at most five: more, and the compiler's overlap checks keep it from vectorising.
@jit
def _into_six(a: np.ndarray, out: np.ndarray) -> None:
    """B^T of F(4, 3): (6, L) -> (6, L)."""
    two, four, five = np.float32(2), np.float32(4), np.float32(5)
    length = a.shape[1]
    for i in range(length):
        out[0, i] = four * a[0, i] - five * a[2, i] + a[4, i]
    for i in range(length):
        out[1, i] = (a[4, i] - four * a[2, i]) + (a[3, i] - four * a[1, i])
    for i in range(length):
        out[2, i] = (a[4, i] - four * a[2, i]) - (a[3, i] - four * a[1, i])
    for i in range(length):
        out[3, i] = (a[4, i] - a[2, i]) + two * (a[3, i] - a[1, i])
    for i in range(length):
        out[4, i] = (a[4, i] - a[2, i]) - two * (a[3, i] - a[1, i])
    for i in range(length):
        out[5, i] = four * a[1, i] - five * a[3, i] + a[5, i]


@jit
def _into_four(a: np.ndarray, out: np.ndarray) -> None:
    """B^T of F(2, 3): (4, L) -> (4, L)."""
    length = a.shape[1]
    for i in range(length):
        out[0, i] = a[0, i] - a[2, i]
    for i in range(length):
        out[1, i] = a[1, i] + a[2, i]
    for i in range(length):
        out[2, i] = a[2, i] - a[1, i]
    for i in range(length):
        out[3, i] = a[1, i] - a[3, i]


@jit
def _out_of_six(a: np.ndarray, out: np.ndarray) -> None:
    """A^T of F(4, 3): (6, L) -> (4, L)."""
    two, four, eight = np.float32(2), np.float32(4), np.float32(8)
    length = a.shape[1]
    for i in range(length):
        out[0, i] = a[0, i] + (a[1, i] + a[2, i]) + (a[3, i] + a[4, i])
    for i in range(length):
        out[1, i] = (a[1, i] - a[2, i]) + two * (a[3, i] - a[4, i])
    for i in range(length):
        out[2, i] = (a[1, i] + a[2, i]) + four * (a[3, i] + a[4, i])
    for i in range(length):
        out[3, i] = (a[1, i] - a[2, i]) + eight * (a[3, i] - a[4, i]) + a[5, i]


@jit
def _out_of_four(a: np.ndarray, out: np.ndarray) -> None:
    """A^T of F(2, 3): (4, L) -> (2, L)."""
    length = a.shape[1]
    for i in range(length):
        out[0, i] = a[0, i] + a[1, i] + a[2, i]
    for i in range(length):
        out[1, i] = a[1, i] - a[2, i] - a[3, i]


@jit
def _transform_input(x: np.ndarray, wide: int, first: int, v: np.ndarray) -> None:
    """Tiles `first` to `first` + n of x (B, T, M, C), transformed, into v (6 (w + 2), n, C)."""
    _, frames, mels, channels = x.shape
    down, across, span = (frames + 3) // 4, (mels + wide - 1) // wide, wide + 2
    window = np.empty((6, span, channels), np.float32)
    half = np.empty((6, span, channels), np.float32)
    whole = np.empty((span, channels), np.float32)
    for t in range(v.shape[1]):
        clip, place = divmod(first + t, down * across)
        top, left = (place // across) * 4 - 1, (place % across) * wide - 1
        for i in range(6):
            for j in range(span):
                if 0 <= top + i < frames and 0 <= left + j < mels:
                    window[i, j] = x[clip, top + i, left + j]
                else:
                    window[i, j] = np.float32(0)
        _into_six(window.reshape((6, span * channels)), half.reshape((6, span * channels)))
        for i in range(6):
            if wide == 4:
                _into_six(half[i], whole)
            else:
                _into_four(half[i], whole)
            for j in range(span):
                v[i * span + j, t] = whole[j]


@jit
def _transform_output(m: np.ndarray, bias: np.ndarray, relu: bool, wide: int, first: int, y: np.ndarray) -> None:
    """Products m (6 (w + 2), n, O), transformed back, plus bias (O,), into tiles `first` to `first` + n of y (B, T, M, O)."""
    _, frames, mels, channels = y.shape
    down, across, span = (frames + 3) // 4, (mels + wide - 1) // wide, wide + 2
    zero = np.float32(0)
    product = np.empty((6, span, channels), np.float32)
    half = np.empty((4, span, channels), np.float32)
    whole = np.empty((wide, channels), np.float32)
    for t in range(m.shape[1]):
        clip, place = divmod(first + t, down * across)
        top, left = (place // across) * 4, (place % across) * wide
        for i in range(6):
            for j in range(span):
                product[i, j] = m[i * span + j, t]
        _out_of_six(product.reshape((6, span * channels)), half.reshape((4, span * channels)))
        for i in range(min(4, frames - top)):
            if wide == 4:
                _out_of_six(half[i], whole)
            else:
                _out_of_four(half[i], whole)
            for j in range(min(wide, mels - left)):
                target = y[clip, top + i, left + j]
                if relu:
                    for c in range(channels):
                        target[c] = max(whole[j, c] + bias[c], zero)
                else:
                    for c in range(channels):
                        target[c] = whole[j, c] + bias[c]


class WinogradConv(nn.Module):
    """A 3x3 convolution of stride 1 and padding 1, with bias and perhaps a ReLU: (B, C, T, M) -> (B, O, T, M), float32, CPU.

    For inference only: no gradients. Holds 36/9 of the direct weights' memory (24/9 for maps at most two wide).

    Args:
        weight: (O, C, 3, 3).
        bias: (O,).
        relu: whether negative outputs become zero.
        mels: width of the maps that will come, which decides the tile; other widths work, only slower.
    """

    def __init__(self, weight: Tensor, bias: Tensor, relu: bool, mels: int) -> None:
        super().__init__()
        self.relu = relu
        self.wide = 4 if mels > 2 else 2
        outputs, channels = weight.shape[:2]
        tall, wide = (torch.from_numpy(_TAPS[size]).to(weight) for size in (TALL, self.wide))
        half = (tall @ weight.detach().permute(2, 3, 1, 0).reshape(3, -1)).view(6, 3, channels * outputs)
        self.register_buffer("points", (wide @ half).view(-1, channels, outputs))  # (6 (w + 2), C, O)
        self.register_buffer("bias", bias.detach().clone())

    points: Tensor
    bias: Tensor

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1).contiguous()
        batch, frames, mels, channels = x.shape
        outputs = self.points.shape[2]
        y = x.new_empty((batch, frames, mels, outputs))
        tiles = batch * -(-frames // TALL) * -(-mels // self.wide)
        chunk = 64 if channels * outputs <= 2**15 else 256  # small enough for the cache, unless the weights exceed it anyway
        arrays = x.numpy(), self.bias.numpy(), y.numpy()
        parts = [(first, min(chunk, tiles - first)) for first in range(0, tiles, chunk)]
        if len(parts) < 2 * torch.get_num_threads():  # torch divides each product itself
            for part in parts:
                self._tiles(*arrays, *part)
        else:
            parallel_for(lambda part: self._tiles(*arrays, *part), parts)
        return y.permute(0, 3, 1, 2)

    def _tiles(self, x: np.ndarray, bias: np.ndarray, y: np.ndarray, first: int, count: int) -> None:
        """Fill `count` tiles of y (B, T, M, O) from `first` on."""
        points, channels, outputs = self.points.shape
        v, m = torch.empty(points, count, channels), torch.empty(points, count, outputs)
        _transform_input(x, self.wide, first, v.numpy())
        torch.bmm(v, self.points, out=m)
        _transform_output(m.numpy(), bias, self.relu, self.wide, first, y)
