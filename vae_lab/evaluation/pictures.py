"""The pictures of an evaluation: errors of the reconstructions, and the quality of samples."""

from collections.abc import Callable, Sequence

from torch import Tensor

from ..vae import VAE
from .distance import REACH, FeatureDistance, structural_similarity
from .features import Features
from .measurement import Measurement

QUALITY_IMAGES = 10_000
SHOWN = 10  # samples beside their neighbours

OF_RECONSTRUCTIONS = {
    "mse": ("", "of the mean image at the most probable z, values in [0, 1]"),
    "psnr": ("dB", "-10 log10 of that, the mean over the images"),
    "feature_distance": ("", "of the same, in the layers of the shipped network; 0 to 2"),
    "ssim": ("", "structural similarity, 1 for equal images"),
}


def reconstructions(m: Measurement) -> None:
    """How far the mean images at the most probable z are from the images."""
    errors: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": _squared_error}
    if not m.vae.likelihood.binary:  # whose means are grey, and the images are not
        errors["psnr"] = lambda x, mean: -10 * _squared_error(x, mean).log10()
        errors["feature_distance"] = FeatureDistance().to(m.device, m.vae.dtype)
        if min(m.vae.shape[1:]) > REACH:
            errors["ssim"] = structural_similarity

    def terms(vae: VAE, x: Tensor) -> tuple[Tensor, ...]:
        mean = vae.likelihood.mean(vae.decode(vae.latent.mode(vae.encode(x))))
        return tuple(error(x.to(mean.dtype), mean) for error in errors.values())

    m.measure("reconstructions", m.settled, m.x, terms, tuple(errors))
    for name in errors:
        m.mean(name, *OF_RECONSTRUCTIONS[name])


def _squared_error(x: Tensor, mean: Tensor) -> Tensor:
    return (mean - x).square().flatten(1).mean(1)


def quality(
    m: Measurement,
    images: Tensor,
    train_images: Tensor | None,
    features: Features | str | None = None,
    temperatures: Sequence[float] = (1.0,),
) -> None:
    """FID, precision, recall and nearest training image of samples of the prior, and a picture; and
    FID of reconstructions."""
    from .samples import beside_neighbours, reconstruction_fid, sample_quality

    m.progress("samples", 0, 1)
    m.draw_anew("samples")
    found = sample_quality(
        m.known, images, QUALITY_IMAGES, features, train_images, m.memory, temperatures
    )
    m.draw_anew("reconstructed")
    found["rfid"] = reconstruction_fid(m.settled, m.x, images, QUALITY_IMAGES, features, m.memory)
    of = features or "the shipped network"
    of = of if isinstance(of, str) else "a network of one's own"
    count = min(len(images), QUALITY_IMAGES)
    for name, value in found.items():
        what = "reconstructions" if name == "rfid" else "samples"
        m.add(name, value, note=f"{count} {what}, features of {of}")
    if train_images is not None:
        m.draw_anew("neighbours")
        given, t = m.known.rows(slice(SHOWN)), temperatures[0]
        m.pictures["neighbours"] = beside_neighbours(
            given, train_images, min(SHOWN, len(m.x)), features=features, temperature=t
        )
    m.progress("samples", 1, 1)
