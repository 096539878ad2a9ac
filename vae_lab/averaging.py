"""The moving average of a model, in which its codes fit its weights."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .latents import Latent


class MovingAverage(AveragedModel):
    r"""A copy of a model with the exponential moving average of its weights.

    .. math:: \bar w \leftarrow d \, \bar w + (1 - d) \, w

    What a latent learns without a gradient follows the encoder from step to step, such as codes
    that are the mean of what chose them: the same average is taken of it. All other buffers, such
    as counters, the units of the data and schedules, are those of the model.

    Args:
        model: a VAE, or a module that has one.
        decay: d.

    Source: Polyak & Juditsky, *Acceleration of Stochastic Approximation by Averaging*, SIAM Journal
    on Control and Optimization 30(4), 1992
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        average = get_ema_multi_avg_fn(decay)
        super().__init__(model, multi_avg_fn=average, use_buffers=False)
        self.average = average

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        averages = _learned(self.module)
        means = [buffer.clone() for buffer in averages]
        started = averages and bool(self.n_averaged > 0)
        super().update_parameters(model)  # which copies all buffers
        if started:
            self.average(means, averages, self.n_averaged)
            torch._foreach_copy_(averages, means)


def _learned(model: nn.Module) -> list[Tensor]:
    """The buffers of real numbers that are saved with a latent, once also of one in another."""
    latents = [module for module in model.modules() if isinstance(module, Latent)]
    saved = {id(x): x for latent in latents for x in latent.state_dict(keep_vars=True).values()}
    return [x for x in saved.values() if not isinstance(x, nn.Parameter) and x.is_floating_point()]
