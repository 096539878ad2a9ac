"""What a VAE is kept as, and where it comes from: its methods that read and write releases."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, cast

import torch

from ..description import library_class

if TYPE_CHECKING:
    from ..vae import VAE
    from .releases import Taken


class Pretrained:
    """The methods of a :class:`vae_lab.VAE` that read and write it."""

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype | None = None, **facts: object
    ) -> Path:
        """Writes a release: `model.safetensors` and `config.json`, in which `facts` are kept.

        Args:
            dtype: of the stored weights, e.g. torch.float16; None: their own. The model that is
                loaded has weights of torch's default type in any case.

        Raises:
            ValueError: the release would not come back as this model: a class that is not
                registered (:func:`vae_lab.register`), or a layer that was changed after it was
                built. Nothing is written.
        """
        from .releases import save

        return save(cast("VAE", self), Path(folder), facts, dtype)

    def push(self, destination: str, dtype: torch.dtype | None = None, **facts: object) -> str:
        """Uploads a release to `hf:owner/name` or `wandb:entity/project/artifact`.

        Args:
            dtype: as for :meth:`save_pretrained`, and so are the facts.

        Returns:
            The source that :meth:`from_pretrained` loads it from.
        """
        from .sources import push

        with TemporaryDirectory() as folder:
            return push(self.save_pretrained(folder, dtype, **facts), destination)

    @classmethod
    def from_pretrained(cls, source: str | Path, strict: bool = True) -> "VAE":
        """A trained model, in evaluation mode, on torch's default device. Nothing that is loaded is
        run, and nothing of the caller's changes: no random state, no mode.

        Args:
            source: a run's or a release's folder, a `.ckpt` or `.safetensors` file, a model of the
                zoo (:mod:`vae_lab.zoo`), `wandb:entity/project/artifact:alias`, `hf:owner/name`.
            strict: refuse weights that are not those of the model, in name and shape; otherwise
                warn, and leave the tensors that do not fit as they are initialised.

        Raises:
            FileNotFoundError: there is no such model.
            ValueError: it is damaged, or not a model of this library.
        """
        from .releases import load

        return load(library_class(cls), source, strict)

    def load_pretrained(
        self,
        source: str | Path,
        part: Literal["encoder", "posterior", "decoder", "model"] | None = None,
        strict: bool = True,
    ) -> "Taken":
        """Takes the weights of another model, or of its encoder or decoder, into this one.

        Args:
            source: as for :meth:`from_pretrained`.
            part: the encoder; the posterior, which is the head and the latent after it; the
                decoder; the model, which is all but a prior of its own; or None: all.
            strict: refuse a source that does not fit in every tensor and setting; otherwise take
                the tensors that do.

        Returns:
            What was taken, and what was not.

        Raises:
            ValueError: the two do not fit; nothing was changed.
        """
        from .releases import take

        return take(cast("VAE", self), source, part, strict)
