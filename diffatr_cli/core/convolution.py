"""Convolutions as a GPU does them fastest: channels-last, with what follows in the same pass, and never of a single channel."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 8  # channels that one is widened to: tensor cores take 16-bit channels by eights

log = logging.getLogger(__name__)


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


class _Fusing:
    """Whether cuDNN has done what it was asked to so far."""

    works = True


def rectified_conv(x: Tensor, conv: nn.Conv2d, plus: Tensor | None = None) -> Tensor:
    """relu(conv(x) + plus), by one kernel of cuDNN on a GPU. Needs a bias, and zeros as padding.

    Where cuDNN has no such kernel it is done in steps, from then on.

    Args:
        x: in the type and the layout of the weight; of as many channels as it has.
        plus: of the output's shape, or None.
    """
    assert conv.bias is not None
    assert not isinstance(conv.padding, str)
    if x.device.type == "cuda" and _Fusing.works:
        settings = conv.stride, conv.padding, conv.dilation, conv.groups
        try:
            if plus is None:
                fused: Tensor = torch.cudnn_convolution_relu(x, conv.weight, conv.bias, *settings)
            else:
                fused = torch.cudnn_convolution_add_relu(x, conv.weight, plus, 1.0, conv.bias, *settings)
            return fused
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            _Fusing.works = False
            log.debug("cuDNN cannot fuse this convolution with what follows; it is done in steps (%s)", error)
    out = functional.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return functional.relu_(out if plus is None else out.add_(plus))
