"""Convolutions as a GPU does them fastest: channels-last, what follows in one pass over memory, and never of a single channel."""

from __future__ import annotations

import logging
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from .trying import Trying

WIDTH = 8  # channels that one is widened to: tensor cores take 16-bit channels by eights


def widened(x: Tensor) -> Tensor:
    """(B, 1, T, M) -> (B, WIDTH, T, M) channels-last, of which all but the first channel are zeros; so for weights too.

    A convolution of both is that of the first channels. Of a single channel it, and most of all its gradient, has no
    kernel on the tensor cores.
    """
    return functional.pad(x.permute(0, 2, 3, 1), (0, WIDTH - 1)).permute(0, 3, 1, 2)


class FirstConv(nn.Conv2d):
    """A convolution of a single channel, which on a GPU is `widened`. Parameters are those of a plain one."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.device.type == "cuda" and self.in_channels == 1:
            input, weight = widened(input), widened(weight)
        out: Tensor = super()._conv_forward(input, weight, bias)
        return out


_fusing = Trying("what follows a convolution is done in steps", logging.getLogger(__name__))


def _fused(out: Tensor, bias: Tensor, plus: Tensor | None, halve: bool) -> Tensor:
    from .rectify_triton import rectify_triton

    return rectify_triton(out, bias, plus, halve)


def rectified_conv(x: Tensor, conv: nn.Conv2d, plus: Tensor | None = None, halve: bool = False) -> Tensor:
    """relu(conv(x) + plus); with `halve` the mean of each two by two of it. Needs a bias, and zeros as padding.

    What follows the convolution is one pass over memory on a GPU, by a kernel in Triton; where that cannot be had, it is done
    in steps from then on.

    Args:
        x: in the type and the layout of the weight; of as many channels as it has.
        plus: of the output's shape, or None.
    """
    assert conv.bias is not None
    assert not isinstance(conv.padding, str)
    settings = conv.stride, conv.padding, conv.dilation, conv.groups
    if x.device.type == "cuda" and _fusing.works and not (halve and plus is not None):
        fused = _fusing(partial(_fused, functional.conv2d(x, conv.weight, None, *settings), conv.bias, plus, halve))
        if fused is not None:
            return fused
    out = functional.conv2d(x, conv.weight, conv.bias, *settings)
    out = functional.relu_(out if plus is None else out.add_(plus))
    return functional.avg_pool2d(out, 2) if halve else out
