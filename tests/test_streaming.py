"""Shards give the batches of the data set that they were written from."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from same_runs import metrics
from torch import distributed
from torch.multiprocessing import start_processes

from datamodules.arrays import Arrays
from datamodules.base import Images
from datamodules.digits import Digits
from datamodules.fashion_mnist import FashionMNIST
from datamodules.image_folder import ImageFolder
from datamodules.streaming import Streaming, write_shards

SETTINGS = {"batch_size": 32, "eval_batch_size": 64, "binarize": "stochastic", "seed": 3}
SETTINGS |= {"flip": True, "crop": 0.7}  # in training
SMALL = 0.02  # MB


class FewClothes(FashionMNIST):
    """The first of the real ones, where they are installed, or noise of their shape."""

    def load(self):
        if self._find() is None:
            noise = torch.Generator().manual_seed(0)
            images = torch.randint(256, (500, 1, 28, 28), dtype=torch.uint8, generator=noise)
            return Images(images[:400], torch.arange(400) % 10, images[400:], torch.arange(100))
        return Images(*(part[:400] for part in super().load()))


def clothes(**settings):
    return FewClothes(download=False, **{"val_size": 40, **SETTINGS, **settings})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    write_shards(clothes(), folder, SMALL)
    assert len([*folder.glob("train/*.bin")]) > 10
    return folder


class FewColours(FewClothes):
    """Two numbers instead of a label."""

    classes = None
    attributes = ("hue", "depth")

    def load(self):
        x, y, test_x, test_y = super().load()
        return Images(x, torch.stack([y.cos(), y / 3], 1), test_x, torch.stack([test_y] * 2, 1) / 7)


def streaming(root, **settings):
    return Streaming(root=str(root), **{"num_workers": 0, "val_size": 40, **SETTINGS, **settings})


def batches(datamodule, stage, *position):
    loader = getattr(datamodule, f"{stage}_dataloader")()
    loader.start_at(*position or (0, 0))
    return list(loader)


def assert_same(one, other):
    for name in ("shape", "classes", "label_names", "attributes"):
        assert getattr(one, name) == getattr(other, name)
    for datamodule in (one, other):
        datamodule.setup()
    assert torch.equal(one.train_labels(), other.train_labels())
    assert torch.equal(one.train_mean(), other.train_mean())
    for stage, *position in (("train", 0, 0), ("train", 1, 7), ("val",), ("test",)):
        pairs = zip(batches(one, stage, *position), batches(other, stage, *position), strict=True)
        assert all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in pairs)
    for datamodule in (one, other):
        datamodule.teardown("fit")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_shards_on_a_disk(written, num_workers):
    assert_same(streaming(written, num_workers=num_workers), clothes())


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_few_labels(written, num_workers, share):
    pair = streaming(written, labelled=50, num_workers=num_workers), clothes(labelled=50)
    for datamodule in pair:
        datamodule.labelled_share = share
    assert_same(*pair)
    one, other = (datamodule.train_dataloader() for datamodule in pair)
    assert one.labelled == other.labelled >= share and len(one) == len(other)


def test_attributes(tmp_path):
    data = FewColours(download=False, val_size=40, **SETTINGS)
    write_shards(data, tmp_path, SMALL)
    assert_same(streaming(tmp_path), data)


def test_shards_from_a_store_are_fetched_and_kept(written, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(written, store)
    settings = {"cache_dir": str(tmp_path / "cache"), "num_workers": 2}
    datamodule = streaming(f"local:{store}", **settings)
    assert_same(datamodule, clothes())
    shards = {path.name for path in store.glob("train/*.bin")}
    assert shards <= {path.name for path in (tmp_path / "cache").rglob("*.bin")}
    for path in store.glob("*/*.bin"):
        path.unlink()
    assert_same(streaming(f"local:{store}", **settings), clothes())


def test_a_folder_of_pictures_and_its_shards(tmp_path):
    for number in range(60):
        folder = tmp_path / "pictures" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((20 + number, 30), 50).save(folder / f"{number}.png")
    settings = {"batch_size": 8, "image_size": 16, "num_workers": 2, "background": [9, 9, 9]}
    folder = ImageFolder(root=str(tmp_path / "pictures"), memory_gb=0, **SETTINGS | settings)
    write_shards(folder, tmp_path / "shards", SMALL)
    folder.teardown("fit")
    shards = streaming(tmp_path / "shards", val_size=0.1, batch_size=8)
    assert_same(shards, folder)
    assert shards.pixels == folder.pixels == {"background": [9, 9, 9], "value_range": None}


def _rank(rank, root, folder):
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    datamodule = streaming(root)
    datamodule.setup()
    train = datamodule._splits["train"]
    loader = datamodule._loader_of(train, 32, shuffle=True, rank=rank, world_size=2)
    torch.save([(batch.x, batch.y) for batch in loader], Path(folder, f"{rank}.pt"))
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_two_processes_see_what_one_sees(written, tmp_path):
    start_processes(_rank, (str(written), str(tmp_path)), nprocs=2, start_method="fork")
    parts = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    datamodule = clothes()
    datamodule.setup()
    whole = datamodule._loader_of(datamodule._splits["train"], 32, shuffle=True)
    for batch, ((x0, y0), (x1, y1)) in zip(whole, parts, strict=True):
        assert torch.equal(torch.cat([x0, x1]), batch.x)
        assert torch.equal(torch.cat([y0, y1]), batch.y)


def test_the_task_writes_what_data_streaming_trains_on(run, tmp_path, capsys):
    run("task=shards", "run_dir=shards")
    assert "1500 images in train/, 297 in test/" in capsys.readouterr().out
    assert_same(streaming("shards", val_size=200), Digits(**SETTINGS))


def without_labels(folder):
    for path in folder.glob("*/index.json"):
        index = json.loads(path.read_text())
        for name in ("labels", "classes", "attributes"):
            index.pop(name)
        path.write_text(json.dumps(index))


@pytest.mark.parametrize("apart", [True, False])
def test_shards_of_an_array_are_its_pictures(tmp_path, apart):
    x = np.random.default_rng(0).integers(256, size=(90, 1, 8, 8)).astype(np.uint8)
    files = {"train": x[:70], "test": x[70:]} if apart else {"train": x}
    for name, images in files.items():
        np.savez(tmp_path / f"{name}.npz", x=images, y=np.arange(len(images)) % 3)
    paths = {name: str(tmp_path / f"{name}.npz") for name in files}
    data = Arrays(**paths, labels="y", test_size=20, num_workers=0, **SETTINGS | {"crop": None})
    assert write_shards(data, tmp_path / "shards", SMALL) == {"train": 70, "test": 20}
    shards = Streaming(root=str(tmp_path / "shards"), num_workers=0, batch_size=8)
    images = torch.cat([part.read(range(len(part))).images for part in shards.open()])
    assert {*map(bytes, images.numpy())} == {*map(bytes, x)} and shards.classes == 3
    assert not apart or torch.equal(images, torch.from_numpy(x))


def test_older_shards_have_no_list_of_labels(written, tmp_path):
    shutil.copytree(written, tmp_path / "old")
    without_labels(tmp_path / "old")
    old, new = streaming(tmp_path / "old"), streaming(written)
    for datamodule in (old, new):
        datamodule.setup()
    pairs = zip(batches(old, "train"), batches(new, "train"), strict=True)
    assert all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in pairs)
    for ask in (lambda: old.classes, lambda: streaming(tmp_path / "old", labelled=20).setup()):
        with pytest.raises(ValueError, match="old holds shards .* write them again with task=sh"):
            ask()


@pytest.mark.parametrize(
    "model",
    [
        ("model=gaussian_vae", "model.condition=labels"),
        ("model=semi_supervised_vae", "data.labelled=100"),
    ],
    ids=lambda line: line[0],
)
def test_a_model_of_labels_is_trained_as_on_the_set_itself(run, model):
    run("task=shards", "run_dir=shards")
    line = (*model, "network.hidden=[8]", "trainer.max_epochs=1")
    of_shards = ("data=streaming", "data.root=shards", "data.num_workers=0", "data.val_size=200")
    sizes = ("data.eval_batch_size=256", "data.batch_size=128", "data.binarize=threshold")
    for name, data in (("one", of_shards), ("other", ("data=digits", "data.val_size=200"))):
        run(*line, *data, *sizes, f"run_dir={name}")
    assert metrics(Path("one")) == metrics(Path("other"))


def broken(folder, breaks):
    shutil.copytree(folder, "shards")
    breaks(Path("shards"))


def pickled(folder):
    path = folder / "train" / "index.json"
    index = json.loads(path.read_text())
    index["config"]["data_format"] = ["pickle", "int"]
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (
            shutil.rmtree,
            "data.root must hold the shards that task=.*: shards is not a folder",
        ),
        (lambda folder: (folder / "train/index.json").unlink(), "data.root must hold the shards"),
        (pickled, r"must hold a tensor and an int for each image.*got \['pickle', 'int'\]"),
    ],
)
def test_what_is_no_shards_is_refused(written, tmp_path, monkeypatch, breaks, message):
    monkeypatch.chdir(tmp_path)
    broken(written, breaks)
    with pytest.raises((FileNotFoundError, ValueError), match=message) as caught:
        streaming("shards").setup()
    assert "\n" not in str(caught.value)


def test_a_damaged_shard_is_named(written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    broken(written, lambda folder: (folder / "train/chunk-0-3.bin").write_bytes(b"x" * 9000))
    datamodule = streaming("shards", num_workers=2)
    datamodule.setup()
    with pytest.raises(OSError, match="image .* of .*shards/train cannot be read .*task=shards"):
        batches(datamodule, "train")


def test_shards_are_not_written_over(written):
    with pytest.raises(ValueError, match="train exists already: remove it, or type another"):
        write_shards(clothes(), written)
