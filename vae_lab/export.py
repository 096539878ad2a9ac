"""A VAE as ONNX graphs, for programs without torch."""

from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.export import Dim

from .ancestral import Ancestral
from .distributions import base, full_precision, one_hot, parameters
from .flows import Pushed
from .networks.base import place_size
from .optional import needs
from .quantized import Quantized

if TYPE_CHECKING:
    import numpy as np

    from .latents import Latent
    from .vae import VAE

TOLERANCE = 1e-4  # of the largest number in the output
LEAST = 2  # places along each side, for torch to reason with; the graphs take fewer


class Exported(NamedTuple):
    """Files of ONNX graphs, and how far from torch's their results are."""

    files: list[Path]
    difference: float  # the largest, in units of the largest number of the same output


class EncoderGraph(nn.Module):
    """x [B, C, H, W], and y [B] of a conditional model, -> the parameters of q(z|x), of each latent
    [B, ...]; of a q without randomness the whole numbers that stand for its codes, and of several
    levels of numbers, or of numbers behind a flow, the means."""

    input = "x"
    sides: ClassVar = {2: "height", 3: "width"}  # that vary, of a fully convolutional model

    def __init__(self, vae: "VAE") -> None:
        super().__init__()
        self.vae = vae
        self.scale: int = getattr(vae.network, "stride", 1)  # pixels of a place
        given = vae if vae.condition is None else vae.given(vae.condition.blank(1))
        with torch.no_grad():
            self.outputs = [*_said(given.encode(self.example(vae, 1)))]

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, ...]:
        vae = self.vae.given(y)
        return tuple(_said(vae.posterior(vae.features(x))).values())

    def example(self, vae: "VAE", count: int) -> Tensor:
        return torch.rand(count, *vae.shape)


class DecoderGraph(nn.Module):
    """z [B, *E], and y [B] of a conditional model, -> the likelihood's parameters [B, C', H, W] and
    the mean image [B, C, H, W].

    Where q has no randomness, whole numbers, of codes or bits, take the place of z. Of a fully
    convolutional model all pixels of all places, from which no picture is cut out.
    """

    outputs = ("parameters", "mean")
    sides: ClassVar = {1: "rows", 2: "columns"}
    scale = 1

    def __init__(self, vae: "VAE") -> None:
        super().__init__()
        self.vae = vae
        self.input = "codes" if vae.latent.deterministic else "z"

    def forward(self, z: Tensor, y: Tensor | None = None) -> tuple[Tensor, ...]:
        vae = self.vae.given(y)
        if self.input == "codes":
            z = _of_codes(vae.latent, z)
        parameters = full_precision(vae.decoder(vae.embed(z)) + vae.output_bias)
        return parameters, vae.likelihood.mean(parameters)

    def example(self, vae: "VAE", count: int) -> Tensor:
        z = vae.latent.prior().sample((count,))  # of any size, which not all priors have
        if not vae.latent.deterministic:
            return z
        return z.argmax(-1) if vae.latent.kind == "codes" else z.long()


def _said(q: Distribution) -> dict[str, Tensor]:
    inner = base(q)
    if isinstance(inner, Ancestral | Pushed):  # of which z is more than its parameters say
        return {"z": inner.mean}
    return {"codes": inner.index} if isinstance(inner, Quantized) else parameters(q)


def _of_codes(latent: "Latent", codes: Tensor) -> Tensor:
    """z, of names of categories or of bits."""
    if latent.kind == "codes":
        return one_hot(codes, latent.prior_parameters[: latent.categories])
    return codes.to(latent.prior_parameters)


def check_packages() -> None:
    """Imports what an export needs.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed.
    """
    with needs("export", "ONNX export"):
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401


@torch.no_grad()
def export_onnx(vae: "VAE", folder: str | Path) -> Exported:
    """Writes `encoder.onnx` and `decoder.onnx`, for batches of any size.

    Those of a fully convolutional model are for pictures of any size too, and the decoder's picture
    is of whole places: it has to be cut where the size is no multiple of the network's stride.

    Those of a conditional model have a second input, `y`: labels [B] or attributes [B, A].

    The encoder maps `x` to the parameters of q(z|x): `loc` and `scale`, `logits` or `rate`, and of
    nearest codes to `codes`, whole numbers; of several levels of numbers, or of numbers behind a
    flow, to `z`, their means. The decoder maps `z`, or `codes`, to the likelihood's `parameters`
    and to the `mean` image. Both are of 32 bits, were run with onnxruntime on several batches and
    sizes and agree with torch, or nothing is written. The model stays as it is.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed.
        RuntimeError: the graph's results are not torch's.
    """
    check_packages()
    folder = Path(folder)
    vae = deepcopy(vae).float().eval()
    graphs: dict[str, EncoderGraph | DecoderGraph] = {
        "encoder": EncoderGraph(vae),
        "decoder": DecoderGraph(vae),
    }
    with TemporaryDirectory() as partial:
        written = {name: Path(partial) / f"{name}.onnx" for name in graphs}
        differences = [_export(graph, written[name]) for name, graph in graphs.items()]
        folder.mkdir(parents=True, exist_ok=True)
        for path in written.values():
            (folder / path.name).write_bytes(path.read_bytes())
    return Exported([folder / path.name for path in written.values()], max(differences))


def _export(graph: EncoderGraph | DecoderGraph, path: Path) -> float:
    models = _sizes(graph.vae)
    torch.onnx.export(
        graph.eval(),
        tuple(_inputs(graph, models[0], 2).values()),
        path,
        input_names=_names(graph),
        output_names=[*graph.outputs],
        dynamic_shapes=[*_varying(graph).values()],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    examples = [_inputs(graph, vae, count) for vae in models for count in (1, 2, 5)]
    difference = max(_difference(graph, path, example) for example in examples)
    if not difference < TOLERANCE:
        raise RuntimeError(f"{path.name} is {difference:.1e} from torch, relatively")
    return difference


def _names(graph: EncoderGraph | DecoderGraph) -> list[str]:
    return [graph.input] if graph.vae.condition is None else [graph.input, "y"]


def _inputs(graph: EncoderGraph | DecoderGraph, vae: "VAE", count: int) -> dict[str, Tensor]:
    """An example of each input."""
    example = graph.example(vae, count)
    y = [] if vae.condition is None else [vae.condition.blank(count)]
    return dict(zip(_names(graph), [example, *y], strict=True))


def _varying(graph: EncoderGraph | DecoderGraph) -> dict[str, dict[int, Dim]]:
    """The axes of the inputs that may have any size; of a flat model that of the batch only."""
    batch = Dim("batch")
    dims = {0: batch}
    if graph.vae.latent.grid:
        least = LEAST * graph.scale
        dims |= {axis: Dim(side, min=least) for axis, side in graph.sides.items()}
    return {name: {0: batch} if name == "y" else dims for name in _names(graph)}


def _sizes(vae: "VAE") -> list["VAE"]:
    """The model, and in front of it the same for larger pictures if it takes them.

    torch would take a grid of a single row for one that always has a single row, and an example
    that has not LEAST places is refused.
    """
    if not vae.latent.grid:
        return [vae]
    channels, height, width = vae.shape
    stride = place_size(vae.network)
    return [vae.at(channels, height + 2 * stride + 1, width + 3 * stride), vae]


def _difference(graph: EncoderGraph | DecoderGraph, path: Path, inputs: dict[str, Tensor]) -> float:
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(
        [*graph.outputs], {name: value.numpy() for name, value in inputs.items()}
    )
    pairs = zip(found, graph(*inputs.values()), strict=True)
    return max(_distance(torch.from_numpy(array), tensor) for array, tensor in pairs)


def _distance(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
