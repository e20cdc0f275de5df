"""Layer normalization by PyTorch's own fused kernels."""

import torch.nn.functional as F

from lab.backends.registry import Implementation


def function(x, weight, bias, eps):
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


LADDER = [Implementation(rung="eager", change="torch.nn.functional.layer_norm", function=function)]
