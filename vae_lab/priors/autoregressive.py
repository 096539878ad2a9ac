"""A prior that draws one variable after the other, each given all before it."""

import math
from collections.abc import Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, MixtureSameFamily, constraints

from ..distributions import full_precision, mapped, precise
from ..networks.base import check_positive, from_zero
from ..seeding import seeded
from .base import Prior, Standardizer, at_one_place

if TYPE_CHECKING:
    from ..latents import Latent

APART = 0.5  # standard deviation of the parameters of a mixture's components at the start


class Autoregressive(Prior):
    r"""A causal transformer over the variables of z, from the first to the last.

    .. math:: p(z) = \prod_t p(z_t \mid z_1, \dots, z_{t-1})

    A step is one variable of codes, bits or counts, on a grid row by row and within a place one
    after the other; of numbers it is all variables of one place, or, without a grid, one of them,
    by a mixture of the latent's own family, such as Gaussians. A code is embedded linearly, so that
    a relaxed one, which is a mixture of codes, is embedded as the mixture of theirs; log p(z) is
    linear in it as well. What is bounded then is what the relaxed codes give, no log p(x) until
    they are nearly one-hot. A linear map of y, which starts at zero, is added to every step.

    Args:
        width: of a step inside the transformer.
        layers: blocks of attention and two dense layers.
        heads: of the attention.
        components: of the mixture at each step, where z is numbers.
        top_k: draw codes among so many of the likeliest only; None: among all. The density is that
            of all.

    Source: Vaswani et al., *Attention Is All You Need*, NeurIPS 2017, arXiv:1706.03762; over codes
    of a grid: van den Oord et al., *Neural Discrete Representation Learning*, NeurIPS 2017,
    arXiv:1711.00937
    """

    has_temperature = True
    takes_condition = True

    def __init__(
        self,
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
        components: int = 8,
        top_k: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in {"width": width, "layers": layers, "heads": heads}.items():
            check_positive(name, value)
        check_positive("components", components)
        if width % heads:
            raise ValueError(f"width must be a multiple of heads={heads}, got {width}")
        if top_k is not None:
            check_positive("top_k", top_k)
        self.width, self.layers, self.heads = width, layers, heads
        self.components, self.top_k = components, top_k

    def bind(self, latent: "Latent") -> None:
        latent = latent.factorised
        self._steps = Steps.of(latent, self.components)
        self.units = Standardizer(latent.variables) if latent.has_units else None
        width = self.width
        self.first = nn.Parameter(torch.zeros(width))
        self.places = nn.Parameter(torch.zeros(self._steps.length, width))
        if not self.places.is_meta:
            nn.init.normal_(self.places, std=1 / math.sqrt(width))
        self.embedding = nn.Linear(math.prod(self._steps.shape), width)
        self.blocks = nn.ModuleList(_Block(width, self.heads) for _ in range(self.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, self._steps.parameters)
        if self.condition_width:
            self.of_condition = from_zero(nn.Linear(self.condition_width, width))
        if not self.head.weight.is_meta:  # all steps begin alike
            nn.init.zeros_(self.head.weight)
            self._steps.start(self.head.bias)

    def meet(self, z: Tensor) -> None:
        if self.units is not None:
            self.units.meet(z)

    def forward(self, condition: Tensor | None) -> "Sequential":
        return Sequential(self, self._steps, condition)

    def parameters_of(self, steps: Tensor, condition: Tensor | None = None) -> Tensor:
        """The parameters of each step given those before it, [*, T, size] -> [*, T, parameters].

        Args:
            condition: [*B, C], where the last axes of * are *B.
        """
        before = self.embedding(steps[..., :-1, :])
        first = self.first.expand(*before.shape[:-2], 1, -1)
        h = torch.cat([first, before], -2) + self.places
        if condition is not None:
            h = h + self.of_condition(condition).unsqueeze(-2)
        for block in self.blocks:
            h = block(h)
        return full_precision(self.head(self.norm(h)))

    def room(self, count: int) -> Tensor:
        """For the keys and values of all steps, [layers, 2, count, heads, T, width of one]."""
        size = count, self.heads, self._steps.length, self.width // self.heads
        return self.first.new_empty(self.layers, 2, *size)

    @torch.no_grad()
    def next_parameters(
        self, number: int, last: Tensor | None, cache: Tensor, condition: Tensor | None = None
    ) -> Tensor:
        """The parameters of one step, [count, parameters], given the cache of those before it,
        which it joins.

        Args:
            last: the step before, [count, size]; None at the first.
            condition: [count, C].
        """
        count = cache.shape[2]
        h = self.first.expand(count, -1) if last is None else self.embedding(last)
        h = h + self.places[number]
        if condition is not None:
            h = h + self.of_condition(condition)
        for block, kept in zip(cast("list[_Block]", self.blocks), cache, strict=True):
            h = block.step(h, kept, number)
        return full_precision(self.head(self.norm(h)))

    def sample(
        self, count: int, temperature: float = 1.0, seed: int = 0, condition: Tensor | None = None
    ) -> Tensor:
        r"""Codes and bits by :math:`p(z_t \mid \dots)^{1/T}`, 0 takes the likeliest; counts that
        are T times as far from their mean, and numbers as far from that of their component, which
        is drawn as a code is; a step at a time."""
        with seeded(seed, self.first.device):
            p = self(condition)
            return p.sample(() if p.batch_shape else (count,), temperature)


class _Block(nn.Module):
    """Causal attention and two dense layers, each added to what comes in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dense = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, h: Tensor) -> Tensor:
        """All steps, [*, T, width]."""
        q, k, v = self._heads(h).transpose(-2, -4).unbind(-3)  # [*, heads, T, width of a head]
        return self._after(h, _attention(q, k, v).transpose(-2, -3))

    def step(self, h: Tensor, kept: Tensor, number: int) -> Tensor:
        """The step of this number, [N, width], given the keys and values [2, N, heads, T, *] that
        are kept of those before it, which its own join."""
        q, *k_v = self._heads(h).unbind(-3)  # [N, heads, width of a head]
        kept[..., number, :] = torch.stack(k_v)
        k, v = kept[..., : number + 1, :]
        # By hand: of a single query the CPU's fused kernel needs four times as long.
        scores = q.unsqueeze(-2) @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        return self._after(h, (scores.softmax(-1) @ v).squeeze(-2))

    def _heads(self, h: Tensor) -> Tensor:
        """Queries, keys and values of each head, [*, 3, heads, width of a head]."""
        qkv: Tensor = self.qkv(self.norm(h))
        return qkv.unflatten(-1, (3, self.heads, -1))

    def _after(self, h: Tensor, seen: Tensor) -> Tensor:
        h = h + self.out(seen.flatten(-2))
        after: Tensor = h + self.dense(h)
        return after


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each step sees itself and those before it; by hand, as the fused kernel has no second
    derivative, which control variates need."""
    later = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(later, -torch.inf)
    return scores.softmax(-1) @ v


class Sequential(Distribution):
    """The distribution of an :class:`Autoregressive` prior, batch shape [], or given a condition
    [*B, C] batch shape [*B]."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self, prior: Autoregressive, steps: "Steps", condition: Tensor | None = None
    ) -> None:
        batch = torch.Size() if condition is None else condition.shape[:-1]
        super().__init__(batch, steps.event_shape, validate_args=False)
        self.prior, self.steps, self.condition = prior, steps, condition

    def log_prob(self, value: Tensor) -> Tensor:
        units, log_scale = self.prior.units, value.new_zeros(())
        if units is not None:
            places = self.event_shape.numel() // units.scale.numel()
            value, log_scale = units(value), places * units.scale.log().sum()
        steps = self.steps.cut(value)  # [*, T, *shape of a step]
        flat = steps.flatten(steps.ndim - len(self.steps.shape))
        flat = flat.to(self.prior.first.dtype)
        parameters = self.prior.parameters_of(flat, self.condition)
        return self.steps.distribution(parameters).log_prob(steps).sum(-1) - log_scale

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = (), temperature: float = 1.0) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        condition = self.condition
        if condition is not None:
            condition = condition.expand(*shape, -1).reshape(shape.numel(), -1)
        last, drawn, cache = None, [], self.prior.room(shape.numel())
        for number in range(self.steps.length):
            parameters = self.prior.next_parameters(number, last, cache, condition)
            drawn.append(self.steps.draw(parameters, temperature, self.prior.top_k))
            last = drawn[-1].flatten(1).to(self.prior.first.dtype)
        z = torch.stack(drawn, 1).reshape(*shape, *self.event_shape)
        return z if self.prior.units is None else self.prior.units.inverse(z)


class Steps(NamedTuple):
    """How z is cut into steps, and what the distribution of one is."""

    latent: "Latent"  # of one step
    length: int  # T
    shape: tuple[int, ...]  # of a step
    parameters: int  # of a step
    event_shape: torch.Size  # of z
    components: int  # of a mixture; 0 where there is none

    @classmethod
    def of(cls, latent: "Latent", components: int) -> "Steps":
        numbers = latent.kind == "numbers"
        count = latent.num_places if numbers and latent.grid else latent.num_variables
        of_a_variable = latent.size // latent.num_variables
        shape = (latent.num_variables // count, *([of_a_variable] if of_a_variable > 1 else []))
        step = at_one_place(latent)
        step.event_shape = shape
        step.prior_size = latent.prior_size * latent.num_places // count
        parameters = components * (1 + step.prior_size) if numbers else step.prior_size
        event_shape = torch.Size(latent.event_shape)
        return cls(step, count, shape, parameters, event_shape, components * numbers)

    def start(self, bias: Tensor) -> None:
        """A mixture's components begin apart from each other."""
        nn.init.zeros_(bias)
        if self.components:
            nn.init.normal_(bias[self.components :], std=APART)

    def cut(self, z: Tensor) -> Tensor:
        """z [*, *E] -> [*, T, *shape]."""
        leading = z.shape[: z.ndim - len(self.event_shape)]
        return z.reshape(*leading, self.length, *self.shape)

    def distribution(self, parameters: Tensor) -> Distribution:
        """Parameters [*, parameters] -> batch shape [*], event shape [*shape]."""
        if not self.components:
            return self.latent.prior_distribution(parameters)
        weights, each = self._mixture(parameters)
        return MixtureSameFamily(
            Categorical(logits=weights, validate_args=False), each, validate_args=False
        )

    def _mixture(self, parameters: Tensor) -> tuple[Tensor, Distribution]:
        weights, rest = parameters.tensor_split([self.components], -1)
        return weights, self.latent.prior_distribution(rest.unflatten(-1, (self.components, -1)))

    def draw(self, parameters: Tensor, temperature: float, top_k: int | None) -> Tensor:
        """Parameters [N, parameters] -> [N, *shape]."""
        if self.components:
            weights, each = self._mixture(parameters)
            rows = torch.arange(len(weights), device=weights.device)
            chosen = mapped(each, itemgetter((rows, _drawn(weights, temperature, None))))
            numbers = chosen.mean.lerp(chosen.sample(), temperature)  # at 1 exactly the draw
            return numbers.clamp(*self.latent.bounds)
        q = self.latent.prior_distribution(parameters)
        codes = self.latent.codes(q)  # [N, 1, K]
        if codes is not None:
            return self.latent.from_numbers(_drawn(codes.log(), temperature, top_k).to(parameters))
        z = q.mean + temperature * (q.sample() - q.mean)
        return z.round().clamp(*self.latent.bounds)


def _drawn(logits: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """Indices of the last axis, [*]."""
    if top_k is not None and top_k < logits.shape[-1]:
        likeliest = logits.topk(top_k)  # no more of them where some are equal
        logits = torch.full_like(logits, -torch.inf).scatter(
            -1, likeliest.indices, likeliest.values
        )
    if not temperature:
        return logits.argmax(-1)
    below = (logits.to(precise(logits)) / temperature).softmax(-1).cumsum(-1)
    drawn = torch.rand_like(below[..., :1]) * below[..., -1:]
    return (below <= drawn).sum(-1).clamp(max=logits.shape[-1] - 1)
