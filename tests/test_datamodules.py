import inspect
import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import hydra
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.trainer.states import TrainerFn
from sklearn.datasets import load_sample_image

from datamodules.base import DataModule, ImageDataModule, Images
from datamodules.cifar10 import CIFAR10
from datamodules.digits import Digits
from datamodules.fashion_mnist import FashionMNIST
from datamodules.image_folder import ImageFolder
from datamodules.mnist import MNIST
from datamodules.sample_images import SampleImages
from datamodules.streamed import StreamedDataModule
from models import GaussianVAE
from vae_lab.data.stream import Tensors
from vae_lab.likelihoods import Gaussian
from vae_lab.networks import MLP
from vae_lab.objectives import ELBO

CONFIGS = Path(__file__).parent.parent / "configs" / "data"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning's own
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),  # not empty, as a run is resumed
]


def ready(datamodule):
    datamodule.setup()
    return datamodule


def images(loader):
    return torch.cat([x for x, *_ in loader])


def keys(loader):
    return [image.tobytes() for image in images(loader).numpy()]


def test_splits_are_disjoint_and_cover_the_data():
    datamodule = ready(Digits(val_size=100))
    splits = [
        keys(getattr(datamodule, f"{name}_dataloader")()) for name in ("train", "val", "test")
    ]
    data = datamodule.load()
    training, test = (keys([(x / 255,)]) for x in (data.train, data.test))
    assert len({*training, *test}) == len(training + test) == 1797  # no two digits are equal
    assert [len(split) for split in splits] == [1400, 100, 297]
    assert sorted(splits[0] + splits[1]) == sorted(training)
    assert splits[2] == test


def test_the_validation_images_depend_on_split_seed_only():
    first = keys(ready(Digits()).val_dataloader())
    assert keys(ready(Digits(seed=5, batch_size=7)).val_dataloader()) == first
    assert keys(ready(Digits(split_seed=1)).val_dataloader()) != first
    assert keys(ready(Digits(split_seed=1)).test_dataloader()) == keys(
        ready(Digits()).test_dataloader()
    )


def test_val_size_may_be_a_fraction():
    assert len(images(ready(Digits(val_size=0.2)).val_dataloader())) == 300


@pytest.mark.parametrize("binarize", ["none", "threshold", "stochastic"])
def test_train_mean_is_the_mean_of_many_epochs(binarize):
    datamodule = ready(Digits(binarize=binarize))
    loader = datamodule.train_dataloader()
    mean = torch.stack([_epoch_mean(loader, epoch) for epoch in range(10)]).mean(0)
    tolerance = 4.5 * 0.5 / 13000**0.5 if binarize == "stochastic" else 1e-5
    torch.testing.assert_close(datamodule.train_mean(), mean, atol=tolerance, rtol=0)


def test_only_training_images_are_augmented_and_their_mean_is_not():
    plain, augmented = (
        ready(Digits(flip=flip, crop=crop)) for flip, crop in ((False, None), (True, 0.8))
    )
    for stage in ("val", "test"):
        one, other = (images(getattr(d, f"{stage}_dataloader")()) for d in (plain, augmented))
        assert torch.equal(one, other)
    assert torch.equal(plain.train_mean(), augmented.train_mean())
    one, other, measured = (
        d.train_dataloader() for d in (plain, augmented, augmented.unaugmented())
    )
    assert torch.equal(images(one), images(measured))
    assert not torch.equal(images(one), images(other))
    assert torch.equal(rows_of(plain), rows_of(augmented))


def test_the_mean_of_some_is_of_images_from_all_over():
    datamodule = ready(Numbers(val_size=1))
    stored = datamodule._splits["train"].images / 255
    torch.testing.assert_close(datamodule.train_mean(), stored.mean(0))
    torch.testing.assert_close(datamodule.train_mean(4), stored[::6].mean(0))


def _epoch_mean(loader, epoch):
    loader.set_epoch(epoch)
    return images(loader).mean(0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1, got 0"),
        ({"binarize": "yes"}, "binarize must be one of none, threshold, stochastic, got 'yes'"),
        ({"flip": "yes"}, "flip must be true or false, got 'yes'"),
        ({"crop": 0}, "crop must be a fraction above 0 and below 1, or null, got 0"),
        ({"crop": 1.2}, "crop must be a fraction above 0 and below 1, or null, got 1.2"),
        ({"val_size": 0}, "val_size must be a count or a fraction between 0 and 1, got 0"),
        ({"val_size": 1.5}, "val_size must be a count or a fraction between 0 and 1, got 1.5"),
    ],
)
def test_settings_are_checked_before_any_file_is_read(settings, message):
    with pytest.raises(ValueError, match=message):
        Digits(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"batch_size": 1400},
            "1400 training images.* got 1300, 200 and 297; type data.batch_size=256$",
        ),
        ({"val_size": 5000}, "128 training images.* got 0, 1500 and 297; lower data.val_size$"),
        ({"val_size": 0.0001}, "and test need 1 each, got 1500, 0 and 297; type data.val_size=1$"),
    ],
)
def test_too_few_images_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Digits(**settings).setup()


def test_shapes_are_known_without_files():
    made = [Digits(), MNIST(), FashionMNIST(), CIFAR10(), ImageFolder(root="nowhere")]
    assert [datamodule.shape for datamodule in made] == [
        (1, 8, 8),
        (1, 28, 28),
        (1, 28, 28),
        (3, 32, 32),
        (3, 64, 64),
    ]


def test_every_config_lists_every_setting():
    for path in CONFIGS.glob("[!_]*.yaml"):
        config = OmegaConf.load(path)
        parameters = inspect.signature(hydra.utils.get_class(config.pop("_target_"))).parameters
        assert set(config) == set(parameters), path


@dataclass(kw_only=True, eq=False)
class Numbers(ImageDataModule):
    """20 training images in 4 batches, recognised by their labels."""

    batch_size: int = 5
    val_size: int | float = 4
    shape = (1, 2, 2)

    def load(self):
        labels = torch.arange(24)
        pictures = labels.byte().view(-1, 1, 1, 1).repeat(1, 1, 2, 2)
        return Images(pictures, labels, pictures[:5] + 100, labels[:5] + 100)


@dataclass(kw_only=True, eq=False)
class Vectors(DataModule):
    """Examples that are no images: 20 of 4 numbers."""

    batch_size: int = 5
    val_size: int | float = 4
    shape = (4,)

    def open(self):
        train = torch.rand(24, 4, generator=torch.Generator().manual_seed(0))
        return Tensors(train, torch.arange(24)), Tensors(train[:5] / 2, torch.arange(5))


def test_data_that_is_no_images_has_the_same_batches_and_trains():
    with pytest.raises(ValueError, match="needs 128 training examples.* got 20, 4 and 5; type"):
        Vectors(batch_size=128).setup()
    data = Vectors()
    model = GaussianVAE(
        shape=data.shape,
        network=MLP((8,)),
        likelihood=Gaussian(0.1),
        objective=ELBO(),
        optimizer=torch.optim.Adam,
        latents=2,
    )
    settings = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", enable_checkpointing=False, **settings)
    trainer.fit(model, data)
    assert trainer.global_step == 8 and trainer.callback_metrics["val/elbo"].isfinite()
    y = {name: torch.cat([b.y for b in getattr(data, f"{name}_dataloader")()]) for name in SPLITS}
    numbers = torch.arange(24)
    assert torch.equal(torch.cat([y["train"], y["val"]]).sort().values, numbers)
    assert torch.equal(y["train"].sort().values, rows_of(ready(Numbers())).sort().values)


SPLITS = ("train", "val", "test")


def rows_of(datamodule):
    return torch.cat([batch.y for batch in datamodule.train_dataloader()])


class OnDisk:
    """A reader of images that are not in memory."""

    def __init__(self, images):
        self.images = images
        self.shape = images.shape
        self.read = images.read

    def __len__(self):
        return len(self.images)

    def subset(self, rows):
        return OnDisk(self.images.subset(rows))


@dataclass(kw_only=True, eq=False)
class StreamedNumbers(Numbers, StreamedDataModule):
    """The same, read by two processes, which read ahead."""

    num_workers: int = 2

    def open(self):
        return tuple(map(OnDisk, super().open()))


class Recorder(pl.LightningModule):
    """Notes the batches that it is trained on; fails on request."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.fail_at = fail_at
        self.seen = []

    def training_step(self, batch, batch_idx):
        position = (self.current_epoch, batch_idx)
        if position == self.fail_at:
            raise ZeroDivisionError
        self.seen.append((*position, batch.y.tolist()))
        return (self.weight - batch.x.mean()).square().sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder, model, ckpt_path=None, save=None, data=Numbers, **settings):
    save = {"every_n_train_steps": 1} if save is None else save
    saver = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **save)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=saver,
        **{"max_epochs": 2, **settings},
    )
    trainer.fit(model, datamodule=data(), ckpt_path=ckpt_path, weights_only=True)
    return model


@pytest.mark.parametrize(
    ("save", "settings"),
    [
        ({"every_n_train_steps": 1}, {"val_check_interval": 0.5}),
        ({"every_n_epochs": 1, "save_on_train_epoch_end": True}, {}),
        ({"every_n_epochs": 1, "save_on_train_epoch_end": False}, {"val_check_interval": 0.5}),
        (
            {"every_n_epochs": 1, "save_on_train_epoch_end": True},
            {"max_steps": 12, "max_epochs": 9},
        ),
        ({"every_n_train_steps": 1}, {"val_check_interval": 0.5, "data": StreamedNumbers}),
    ],
)
def test_a_resumed_run_trains_on_exactly_the_remaining_batches(tmp_path, save, settings):
    whole = fit(tmp_path, Recorder(), save=save, **settings).seen
    assert not multiprocessing.active_children()
    assert len({tuple(labels) for *_, labels in whole}) == len(whole)
    for path in sorted(tmp_path.glob("*.ckpt")):
        step = int(path.stem.removeprefix("step="))
        resumed = fit(tmp_path, Recorder(), ckpt_path=path, save=save, **settings)
        assert resumed.seen == whole[step:]


@pytest.mark.parametrize("data", [Numbers, StreamedNumbers])
@pytest.mark.parametrize("fail_at", [(0, 1), (0, 3), (1, 0), (1, 3)])
def test_a_run_that_failed_in_a_step_repeats_it(tmp_path, fail_at, data):
    whole = fit(tmp_path / "whole", Recorder()).seen
    save = {"every_n_epochs": 9, "save_on_exception": True}
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, Recorder(fail_at), save=save, data=data)
    assert not multiprocessing.active_children()
    (path,) = tmp_path.glob("*.ckpt")
    resumed = fit(tmp_path, Recorder(), ckpt_path=path, save=save, data=data)
    assert resumed.seen == whole[4 * fail_at[0] + fail_at[1] :]


def test_without_the_position_the_batches_would_differ(tmp_path):
    whole = fit(tmp_path, Recorder()).seen
    path = tmp_path / "step=2.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["Numbers"]
    torch.save(checkpoint, path)
    assert fit(tmp_path, Recorder(), ckpt_path=path).seen != whole[2:]


def test_a_test_from_a_checkpoint_leaves_the_next_training_alone(tmp_path):
    datamodule = ready(Numbers())
    datamodule.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    datamodule.load_state_dict({"position": [0, 3, False]})
    assert len(list(datamodule.train_dataloader())) == 4


def test_a_trainer_may_be_given_the_loaders_alone():
    """The order of an epoch is then told by the number that Lightning gives it."""
    datamodule = ready(Vectors())
    loader = datamodule.train_dataloader()
    orders = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        orders.append(torch.cat([batch.y for batch in loader]).tolist())
    assert orders[0] == orders[2] != orders[1]


def test_a_process_may_have_all_test_data():
    """For a report, of which there is one: also where it has a share of every batch, or none."""
    datamodule = ready(Numbers())
    expected = [batch.y.tolist() for batch in datamodule.test_dataloader()]
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    datamodule.trainer = SimpleNamespace(global_rank=1, world_size=2, strategy=strategy)
    assert [batch.y.tolist() for batch in datamodule.whole_test()] == expected
    assert [batch.y.tolist() for batch in datamodule.test_dataloader()] != expected


def test_a_position_that_is_loaded_late_is_kept():
    """Sharded models are restored when the loaders have been made."""
    datamodule = ready(Numbers())
    datamodule.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    datamodule.trainer.state.fn = TrainerFn.FITTING
    batches = iter(datamodule.train_dataloader())
    datamodule.load_state_dict({"position": [0, 3, False]})
    assert len(list(batches)) == 1


def test_sample_images_are_crops_of_two_photographs_and_no_pixel_is_in_both_splits():
    data = SampleImages(image_size=32).load()
    assert data.train.shape == (800, 3, 32, 32) and data.test.shape == (200, 3, 32, 32)
    assert data.train.dtype == torch.uint8
    for images, labels in ((data.train, data.train_labels), (data.test, data.test_labels)):
        assert labels.bincount().tolist() == [len(images) // 2] * 2
        assert images.float().std((1, 2, 3)).min() > 1  # no crop is empty
    again = SampleImages(image_size=32, seed=1, split_seed=1).load()
    assert torch.equal(again.train, data.train) and torch.equal(again.test, data.test)
    # What is painted over the part of the test is seen in no training image.
    module = SampleImages(image_size=32)
    with mock.patch("sklearn.datasets.load_sample_image", painted):
        assert torch.equal(module.load().train, data.train)
        assert (module.load().test == 9).all()


def painted(name):
    photograph = load_sample_image(name).copy()
    photograph[:, int(0.7 * 640) :] = 9
    return photograph
