r"""A whole episode is a distribution: REINFORCE on CartPole through the one contract.

.. math:: \nabla_\theta \mathbb{E}_{z \sim q_\theta}[R(z)] =
          \mathbb{E}\Big[(R(z) - c) \sum_t \nabla_\theta \log \pi_\theta(a_t | s_t)\Big]

`sample()` plays episodes z with the policy, `log_prob()` scores the actions taken, and the return
R is not differentiable: `ScoreFunction(...)(q, R).backward()`. What is compared is the baseline c.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import gymnasium
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli

from vae_lab import figures
from vae_lab.estimators import ScoreFunction

BASELINES = ["none", "moving_average", "leave_one_out"]
OBSERVATION, ACTION, ALIVE = slice(0, 4), 4, 5  # what an episode records of each of its steps
HORIZON, SOLVED = 500, 475  # CartPole-v1's own


class Episodes:
    r"""Episodes of CartPole under a policy: batch shape [], event shape [HORIZON, 6].

    .. math:: \log q(z) = \sum_t \log \pi(a_t | s_t) + \text{the environment's own terms},

    which have no gradient for the policy and are left out.
    """

    has_rsample = False

    def __init__(self, policy: nn.Module) -> None:
        self.policy = policy

    @torch.no_grad()
    def sample(self, sample_shape: tuple[int, ...]) -> Tensor:
        """All episodes side by side, [S, HORIZON, 6]; zeros after their ends."""
        envs = gymnasium.make_vec("CartPole-v1", *sample_shape)
        observation, _ = envs.reset(seed=int(torch.randint(2**31, ())))
        alive = torch.ones(*sample_shape)
        z = torch.zeros(*sample_shape, HORIZON, 6)
        for step in range(HORIZON):
            state = torch.from_numpy(observation)
            action = self.actions(state).sample()
            z[:, step] = torch.cat([state, torch.stack([action, alive], -1)], -1) * alive[:, None]
            observation, _, fallen, *_ = envs.step(action.long().numpy())
            alive = alive * torch.from_numpy(~fallen)
            if not alive.any():
                break
        return z

    def log_prob(self, z: Tensor) -> Tensor:
        log_pi = self.actions(z[..., OBSERVATION]).log_prob(z[..., ACTION])  # [S, HORIZON]
        return (log_pi * z[..., ALIVE]).sum(-1)

    def actions(self, state: Tensor) -> Bernoulli:
        """Whether to push to the right."""
        return Bernoulli(logits=self.policy(state).squeeze(-1), validate_args=False)


def total_return(z: Tensor) -> Tensor:
    """One point for every step begun with the pole standing, [S]."""
    return z[..., ALIVE].sum(-1)


def train(baseline: str, updates: int, episodes: int) -> tuple[nn.Module, list[float]]:
    """A policy, and the mean return of the episodes of each update."""
    policy = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
    estimator = ScoreFunction(episodes, baseline)
    optimizer = torch.optim.Adam(policy.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, updates)
    returns = []
    for _ in range(updates):
        value = estimator(Episodes(policy), total_return)
        optimizer.zero_grad()
        (-value).backward()
        optimizer.step()
        schedule.step()
        returns.append(value.item())
    return policy, returns


def picture(curves: dict[str, Tensor], episodes: int, path: Path) -> None:
    """Mean over the seeds and the band from the worst seed to the best."""
    figure, (axis,) = figures.panels(1, height=3.4)
    for index, (baseline, returns) in enumerate(curves.items()):  # returns [seeds, updates]
        played = [episodes * (update + 1) for update in range(returns.shape[1])]
        low, high = returns.aminmax(dim=0)
        line = {**figures.style(index), "linestyle": figures.STYLES[index]}
        axis.plot(played, returns.mean(0).tolist(), **line, label=f"baseline: {baseline}")
        look = {"color": line["color"], "alpha": 0.15, "linewidth": 0}
        axis.fill_between(played, low.tolist(), high.tolist(), **look)
    axis.axhline(SOLVED, color="black", linewidth=0.8)
    axis.annotate("solved", (0, SOLVED), (2, 2), textcoords="offset points", fontsize=8)
    axis.set(xlabel="episodes played", ylabel="return", title="CartPole-v1, the score function")
    axis.legend(frameon=False, fontsize=8)
    figures.write(figure, path)


def main(arguments: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The return of the trained policies over 100 new episodes each, [seeds] for each baseline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100, help="updates of the policy")
    parser.add_argument("--episodes", type=int, default=16, help="episodes per update")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds")
    out = {"type": figures.png("policy_gradient.png"), "default": "examples/images"}
    parser.add_argument("--out", **out, help="a folder, or a file.png")
    args = parser.parse_args(arguments)
    curves, final = {}, {}
    print(f"{'baseline':16}{'return':>8}{'s.e.':>7}{'solved':>8}")
    for baseline in BASELINES:
        runs, returns = [], []
        for seed in range(args.seed, args.seed + args.seeds):
            torch.manual_seed(seed)
            policy, run = train(baseline, args.steps, args.episodes)
            runs.append(run)
            returns.append(total_return(Episodes(policy).sample((100,))).mean())
        curves[baseline], final[baseline] = torch.tensor(runs), torch.stack(returns)
        mean, error = final[baseline].mean(), final[baseline].std() / args.seeds**0.5
        solved = int((final[baseline] >= SOLVED).sum())
        print(f"{baseline:16}{mean:8.1f}{error:7.1f}{solved:>5}/{args.seeds}", flush=True)
    picture(curves, args.episodes, args.out)
    return final


if __name__ == "__main__":
    main()
