from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch.distributions import Bernoulli

from examples import option_greeks, own_samples, policy_gradient, resampled_cloud
from vae_lab.estimators import DisARM, ScoreFunction

SCRIPTS = [path.stem for path in Path(option_greeks.__file__).parent.glob("*.py")]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_picture_that_cannot_be_written_is_refused_at_the_start(name, tmp_path, capsys):
    (tmp_path / "a").touch()
    with pytest.raises(SystemExit) as left:
        import_module(f"examples.{name}").main(["--out", str(tmp_path / "a")])
    assert left.value.code == 2
    assert "argument --out: must be a folder or a file.png, got" in capsys.readouterr().err


def test_an_episode_is_scored_by_the_actions_taken_until_it_ends():
    policy = torch.nn.Linear(4, 1)
    q = policy_gradient.Episodes(policy)
    z = q.sample((3,))
    returns = policy_gradient.total_return(z)
    assert z.shape == (3, 500, 6) and (returns > 5).all() and (returns < 500).all()
    steps = int(returns[0])
    assert not z[0, steps:].any()
    state, action = z[0, :steps, :4], z[0, :steps, 4]
    by_hand = Bernoulli(logits=policy(state)[:, 0]).log_prob(action).sum()
    assert q.log_prob(z)[0].item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_only_the_score_function_takes_an_episode():
    q = policy_gradient.Episodes(torch.nn.Linear(4, 1))
    assert ScoreFunction(2)(q, policy_gradient.total_return).requires_grad
    with pytest.raises(ValueError, match="DisARM works with .*Episodes.*ScoreFunction"):
        DisARM()(q, policy_gradient.total_return)


def test_the_policy_learns(tmp_path):
    _, returns = policy_gradient.train("leave_one_out", 16, 16)
    assert sum(returns[-3:]) > 1.5 * sum(returns[:3])
    small = ["--steps", "2", "--episodes", "4", "--seeds", "2"]
    final = policy_gradient.main([*small, "--out", str(tmp_path)])
    assert set(final) == set(policy_gradient.BASELINES)
    assert (tmp_path / "policy_gradient.png").exists()


def test_the_greeks_agree_with_black_and_scholes_unless_a_jump_is_missed(tmp_path, capsys):
    scores = option_greeks.main(["--steps", "20000", "--out", str(tmp_path / "new")])
    missed = {(row, method) for row, method in scores if abs(scores[row, method]) > 4.5}
    rows = ["call gamma, of pathwise delta", "digital delta", "digital vega"]
    assert missed == {(row, "pathwise") for row in [*rows, "digital gamma, of ratio delta"]}
    warned = [line for line in capsys.readouterr().out.splitlines() if "blind" in line]
    assert len(warned) == len(missed) and (tmp_path / "new" / "option_greeks.png").exists()


@pytest.mark.parametrize("detach", [False, True])
def test_the_digit_reaches_the_last_row_through_the_samples_fed_back(detach):
    writer = own_samples.Writer()
    z = own_samples.FreeRun(writer, torch.tensor([3]), detach).rsample((2,))
    last = z[..., -1, :].sum()
    (slope,) = torch.autograd.grad(last, writer.start.weight)
    assert z.shape == (2, 1, 2, 8, 8)
    assert (slope[3] == 0).all() if detach else (slope[3] != 0).all()


def test_a_written_image_is_scored_by_what_each_row_was_written_from():
    writer, digit = own_samples.Writer(), torch.tensor([3, 7])
    q = own_samples.FreeRun(writer, digit)
    z = q.sample((4,))
    first = writer(writer.start(digit).unsqueeze(1), 0).log_prob(z[..., 0, :]).sum((-1, -2))
    rest = [writer(z[..., t - 1, :], t).log_prob(z[..., t, :]).sum((-1, -2)) for t in range(1, 8)]
    torch.testing.assert_close(q.log_prob(z), first + sum(rest))


def test_own_samples_runs(tmp_path):
    scores = own_samples.main(["--steps", "3", "--seeds", "2", "--out", str(tmp_path)])
    assert all(score.isfinite().all() for score in scores.values())
    assert (tmp_path / "own_samples.png").exists()


def test_the_gradient_reaches_the_first_cloud(tmp_path):
    small = ["--repeats", "400", "--steps", "2", "--out", str(tmp_path / "a.png")]
    found = resampled_cloud.main(small)
    torch.testing.assert_close(found["pathwise"], found["finite differences"], rtol=1e-6, atol=1e-6)
    gap = (found["score function"] - found["pathwise"]).mean(0)
    error = (found["score function"].std(0) ** 2 + found["pathwise"].std(0) ** 2).sqrt() / 20
    assert (gap.abs() < 4 * error).all() and (tmp_path / "a.png").exists()
