"""AdamW on float32 weights, whatever the model's dtype."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lab.core import LLM
from lab.training import config


class Optimizer:
    """AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101) with clipped gradients.

    weights: in float32, by name. A float32 model's are its own. Of a bfloat16 model they are copies that the model's
    follow: a step is mostly too small to show in bfloat16, and would be lost (Micikevicius et al. 2018,
    https://arxiv.org/abs/1710.03740). Autocast would keep the weights in float32 and cast in PyTorch's own functions,
    but not in the registry's kernels.
    """

    def __init__(self, model: LLM, dtype: torch.dtype, settings: config.Optimizer) -> None:
        """model: in float32; it becomes one of `dtype`. Norms and biases do not decay."""
        self.model = model
        parameters = dict(model.named_parameters())
        if dtype == torch.float32:
            self.weights = parameters
        else:
            self.weights = {name: nn.Parameter(weight.detach().clone()) for name, weight in parameters.items()}
            model.to(dtype)
        self.clip = settings.clip
        decaying = [weight for weight in self.weights.values() if weight.dim() >= 2]
        others = [weight for weight in self.weights.values() if weight.dim() < 2]
        groups = [
            {"params": decaying, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(groups, betas=settings.betas, fused=True)

    def take_gradients(self) -> None:
        """Add the model's gradients to those of `weights`, in float32, and forget them."""
        for name, weight in self.model.named_parameters():
            own = self.weights[name]
            if own is not weight and weight.grad is not None:
                own.grad = weight.grad.float() if own.grad is None else own.grad.add_(weight.grad)
                weight.grad = None

    @torch.no_grad()
    def step(self, lr: float) -> Tensor:
        """Update the weights, and the model's, from the gradients that were taken, and forget these. Returns their
        norm, before it was clipped, as a scalar tensor."""
        norm = nn.utils.clip_grad_norm_(self.weights.values(), self.clip)
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        self.adamw.zero_grad()
        for name, weight in self.model.named_parameters():
            if self.weights[name] is not weight:
                weight.copy_(self.weights[name])
        return norm

    def state(self) -> dict[str, Tensor]:
        """AdamW's moments and step of each weight, as tensors by "<weight>.<what>"."""
        return {
            f"{name}.{key}": value
            for name, weight in self.weights.items()
            for key, value in self.adamw.state[weight].items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up a `state`; its tensors are on the weights' device. Raises KeyError for a weight that is none of the
        model's, and for one of which something is missing: AdamW would begin with it anew."""
        for name, value in state.items():
            weight, _, key = name.rpartition(".")
            self.adamw.state[self.weights[weight]][key] = value
        for name, weight in self.weights.items():
            if missing := {"step", "exp_avg", "exp_avg_sq"} - self.adamw.state[weight].keys():
                raise KeyError(f"{name}.{min(missing)}")
