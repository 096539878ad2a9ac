"""A run's folder: what is found in it, and what is refused."""

import os

import pytest
import torch
from tiny import randomize

from vae_lab import VAE
from vae_lab.latents import Categorical, Gaussian
from vae_lab.likelihoods import Bernoulli
from vae_lab.likelihoods import Gaussian as GaussianLikelihood
from vae_lab.networks import MLP, Linear
from vae_lab.runs import default_folder, find_checkpoint, load_checkpoint, take_part


def test_every_run_has_its_own_folder(tmp_path):
    folders = set()
    for _ in range(3):
        folder = default_folder("gumbel_vae", "mnist", tmp_path)
        folder.mkdir(parents=True)  # fails where it exists
        folders.add(folder)
    assert len(folders) == 3
    assert all("-gumbel_vae-mnist" in folder.name for folder in folders)


def run_with(tmp_path, *names):
    (tmp_path / "checkpoints").mkdir()
    for name in names:
        (tmp_path / "checkpoints" / f"{name}.ckpt").touch()
    return tmp_path


def test_the_best_checkpoint_comes_first_and_the_last_where_it_is_asked_for(tmp_path):
    run = run_with(tmp_path, "best", "last")
    assert find_checkpoint(run).stem == "best"
    assert find_checkpoint(str(run), ("last",)).stem == "last"
    (run / "checkpoints" / "best.ckpt").unlink()
    assert find_checkpoint(run).stem == "last"
    file = run / "checkpoints" / "last.ckpt"
    assert find_checkpoint(file) == file


def test_no_checkpoint_is_said_plainly(tmp_path):
    wanted = "expected a .ckpt file, or a run with checkpoints/best.ckpt or checkpoints/last.ckpt"
    for source in (tmp_path, tmp_path / "absent.ckpt", run_with(tmp_path)):
        with pytest.raises(FileNotFoundError, match=wanted):
            find_checkpoint(source)


def test_a_checkpoint_is_read(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"config": {"seed": 1}, "state_dict": {"a": torch.ones(2)}}, path)
    checkpoint = load_checkpoint(path)
    assert checkpoint["config"] == {"seed": 1} and checkpoint["state_dict"]["a"].sum() == 2


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    path, trace = tmp_path / "last.ckpt", tmp_path / "trace"
    torch.save({"config": {}, "malice": Malice(trace)}, path)
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        load_checkpoint(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the malice must work, or this tests nothing"


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_cut_off_checkpoint_is_refused(keep, tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"config": {}, "state_dict": {"a": torch.ones(500)}}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match="last.ckpt is not a readable checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"hello", b"u", b")", b"a.", b"\x80\x02Q.", b"h\x00."])
def test_what_is_no_checkpoint_is_refused(content, tmp_path):
    """Some of these make the unpickler pop from an empty stack."""
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [{"state_dict": {}}, torch.ones(2), [1]])
def test_the_checkpoint_of_another_program_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint of train.py: it holds no config"):
        load_checkpoint(tmp_path / "other.ckpt")


def vae(latent=None, network=None, likelihood=None):
    parts = network or MLP((6,)), latent or Gaussian(4), likelihood or Bernoulli()
    return randomize(VAE((1, 4, 4), *parts))


def changed(model, before):
    after = model.state_dict()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def copied(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_part_is_taken_whole_and_alone(part, tmp_path):
    """A decoder of four numbers serves a Gaussian latent and two bits of one-hot codes alike."""
    theirs = vae(likelihood=GaussianLikelihood(0.5, learned=True))
    theirs.save_pretrained(tmp_path)
    ours = vae(Categorical(2, 2), likelihood=GaussianLikelihood(0.5, learned=True))
    before = copied(ours)
    taken = take_part(ours, part, tmp_path)
    assert changed(ours, before) == set(taken) and taken
    assert all(torch.equal(ours.state_dict()[n], theirs.state_dict()[n]) for n in taken)
    assert ("output_bias" in taken and "likelihood.log_sigma" in taken) is (part == "decoder")


def test_a_part_that_does_not_fit_is_refused_and_changes_nothing(tmp_path):
    vae().save_pretrained(tmp_path)
    for ours in (vae(Gaussian(5)), vae(network=MLP((7,))), vae(network=Linear())):
        before = copied(ours)
        with pytest.raises(ValueError, match=r"the decoder of .* does not fit: .*decoder\.0"):
            take_part(ours, "decoder", tmp_path)
        assert not changed(ours, before)


def test_the_refusal_names_both_shapes(tmp_path):
    vae().save_pretrained(tmp_path)
    message = r"decoder\.0\.weight is \[6, 4\] there and \[6, 5\] here \(1 differ\)"
    with pytest.raises(ValueError, match=message):
        take_part(vae(Gaussian(5)), "decoder", tmp_path)
    with pytest.raises(ValueError, match="likelihood.log_sigma is absent there and"):
        learned = GaussianLikelihood(0.5, learned=True)
        take_part(vae(likelihood=learned), "decoder", tmp_path)
