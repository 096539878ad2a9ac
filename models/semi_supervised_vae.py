"""The semi-supervised VAE."""

from typing import Any, Literal, cast

from torch import Tensor

from vae_lab.conditions import InferredLabels
from vae_lab.data import Batch
from vae_lab.estimators import Estimator, Exact, Reparameterization
from vae_lab.latents import Gaussian, Latent
from vae_lab.levels import Levels
from vae_lab.metrics import LabelMetrics
from vae_lab.objectives import Terms
from vae_lab.optimization import LABELLED_SHARE, terms_of
from vae_lab.optimization import label_weight as weight_of

from .base import Classes, VAEModule, condition_of


class SemiSupervisedVAE(VAEModule):
    r"""A label that is a latent variable where it is not known, above Gaussian latents (M2).

    .. math:: \mathcal{L}(x) + \alpha \log q(y|x) \text{ where the label is known}, \quad
              \alpha = w N / N_y

    for N training data, of which :math:`N_y` have labels. All but some labels are hidden by
    `data.labelled`. Where they are few, each batch has some of them, again and again, and they
    count as much as is said above on average.

    Args:
        latents: D, the width of z.
        learn_prior: train the prior's mean and scale.
        num_samples: samples of z for one datum and label.
        label_weight: w, which is 0.1 in the paper.
        labelled_share: of a batch, that has labels at least.
        label_estimator: of the expectation over labels; a name of those in
            configs/estimator, or None: their sum, by :class:`Exact`.
        latent: another one than :class:`Gaussian`.
        estimator: of the expectation over z, another one than :class:`Reparameterization`.
        condition: always the labels.
        condition_prior: does p(z) depend on them.
        classes: of the labels, how many or their names.
        shared: see :class:`VAEModule`.

    Source: Kingma, Rezende, Mohamed & Welling, *Semi-Supervised Learning with Deep Generative
    Models*, NeurIPS 2014, arXiv:1406.5298
    """

    own_latent_settings = ("latents", "learn_prior")
    own_prior_settings = ("learn_prior",)
    own_estimator_settings = ("num_samples",)

    def __init__(
        self,
        *,
        latents: int = 50,
        learn_prior: bool = False,
        num_samples: int = 1,
        label_weight: float = 0.1,
        labelled_share: float = LABELLED_SHARE,
        label_estimator: Estimator | str | None = None,
        latent: Latent | None = None,
        estimator: Estimator | None = None,
        condition: Literal["labels"] = "labels",
        condition_prior: bool = False,
        classes: Classes | None = None,
        **shared: Any,
    ) -> None:
        if label_weight < 0:
            raise ValueError(f"label_weight must not be negative, got {label_weight:g}")
        if not 0 <= labelled_share < 1:
            raise ValueError(f"labelled_share must be from 0 to below 1, got {labelled_share:g}")
        labels = condition_of(condition, condition_prior, classes, None)
        super().__init__(
            latent=latent or Gaussian(latents, learn_prior),
            estimator=Levels(
                cast(Estimator, label_estimator or Exact()),
                estimator or Reparameterization(num_samples),
            ),
            condition=InferredLabels(labels.width, condition_prior, labels.names),
            **shared,
        )
        self.label_weight, self.labelled_share = label_weight, labelled_share
        self._alpha = label_weight

    def setup(self, stage: str) -> None:
        """Wants labels in every batch."""
        super().setup(stage)
        if stage == "fit":
            datamodule = self.trainer.datamodule
            datamodule.train_labels()  # refuses what does not know them
            datamodule.labelled_share = self.labelled_share

    def on_train_start(self) -> None:
        """Weighs the labels by how few of the data have one."""
        super().on_train_start()
        self._alpha = weight_of(self.label_weight, self.trainer.train_dataloader.labelled)

    def terms_of(self, x: Tensor, y: Tensor) -> Terms:
        """Also log q(y|x) of the labels that are known."""
        return terms_of(self.vae, self.objective, self.estimator, x, y, self._alpha)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Also the accuracy."""
        super().validation_step(batch, batch_idx)
        best = self.vae.classify(batch.x)
        cast(LabelMetrics, self.metrics).update_labels(best, batch.y)
