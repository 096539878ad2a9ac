"""What the field calls otherwise: names that newcomers type, and what to type here for them."""

VALUES = {  # by group, or a setting of its own
    "task": {
        "train": "task=fit, which is the default: leave it out",
        "generate": "task=sample checkpoint=runs/NAME",
        "eval": "task=evaluate checkpoint=runs/NAME",
        "embed": "task=encode checkpoint=runs/NAME encode.out=z.npy",
        "reconstruct": "task=encode, and task=decode with its file",
    },
    "model": {
        "vae": "model=gaussian_vae",
        "beta_vae": "model=gaussian_vae objective.beta=4",
        "conditional_vae": "model=gaussian_vae model.condition=labels",
        "cvae": "model=gaussian_vae model.condition=labels",
        "iwae": "model=gaussian_vae objective=iwae",
        "vampprior": "model=gaussian_vae prior=vamp",
        "hvae": "model=gaussian_vae latent=hierarchical_gaussian",
        "ladder_vae": "model=gaussian_vae latent=hierarchical_gaussian",
        "discrete_vae": "model=gumbel_vae",
        "dvae": "model=gumbel_vae",
        "bernoulli_vae": "model=gumbel_vae latent=bernoulli",
        "sq_vae": "model=vq_vae estimator=gumbel_softmax",
        "rq_vae": "model=vq_vae latent=residual_codebook",
        "vq_vae2": "model=vq_vae latent=residual_codebook",
        "m2": "model=semi_supervised_vae",
    },
    "estimator": {
        "reinforce": "estimator=score_function",
        "likelihood_ratio": "estimator=score_function",
        "rloo": "estimator=score_function, whose baseline is leave_one_out",
        "leave_one_out": "estimator=score_function, whose baseline is leave_one_out",
        "nvil": "estimator=score_function estimator.baseline=learned",
        "vimco": "estimator=score_function objective=iwae",
        "pathwise": "estimator=reparameterization",
        "stl": "estimator=sticking_the_landing",
        "u2g": "estimator=disarm",
        "concrete": "estimator=gumbel_softmax",
        "gumbel": "estimator=gumbel_softmax",
        "st_gumbel_softmax": "estimator=gumbel_softmax estimator.hard=true",
        "ste": "estimator=straight_through",
        "rotation_trick": "model=vq_vae model.rotation=true",
    },
    "objective": {
        "beta": "objective.beta=4",
        "beta_vae": "objective.beta=4",
        "lpips": "objective=perceptual",
        "gan": "objective=adversarial",
        "vqgan": "objective=adversarial",
    },
    "likelihood": {
        "mse": "likelihood=gaussian",
        "normal": "likelihood=gaussian",
        "l1": "likelihood=laplace",
        "bce": "likelihood=bernoulli",
    },
    "network": {
        "cnn": "network=conv",
        "fc": "network=mlp",
        "unet": "network=grid",
        "tcn": "network=temporal_conv",
    },
    "latent": {
        "normal": "latent=gaussian",
        "full_covariance": "latent=correlated_gaussian",
        "iaf": "latent=flow_gaussian",
        "binary": "latent=bernoulli",
        "vq": "latent=codebook",
        "rvq": "latent=residual_codebook",
    },
    "prior": {
        "normal": "prior=standard",
        "gmm": "prior=mixture",
        "vampprior": "prior=vamp",
        "realnvp": "prior=flow",
        "pixelcnn": "prior=autoregressive",
        "transformer": "prior=autoregressive",
    },
    "data": {
        "csv": "data=arrays data.train=FILE.csv",
        "parquet": "data=arrays data.train=FILE.parquet",
        "numpy": "data=arrays data.train=FILE.npy",
        "folder": "data=image_folder data.root=FOLDER",
        "imagenet": "data=image_folder data.root=FOLDER",
        "dsprites": "data=sprites",
    },
    "trainer": {"fsdp2": "trainer=fsdp", "cuda": "trainer=gpu"},
}

SETTINGS = {
    "gpus": "trainer.devices",
    "device": "trainer=cpu or trainer=gpu",
    "workers": "data.num_workers with data=image_folder, arrays or streaming",
    "num_workers": "data.num_workers with data=image_folder, arrays or streaming",
    "data.path": "data.root=FOLDER, or data.train=FILE with data=arrays",
    "dataset": "data",
    "learning_rate": "model.optimizer.lr",
    "latent_dim": "model.latents",
    "latents": "model.latents",
    "z_dim": "model.latents",
    "patience": "early_stopping",
    "label": "model.condition=labels",
    "output_dir": "run_dir",
    "save_dir": "run_dir",
}


def called_here(group: str, typed: str) -> str:
    """The end of an error line about a name that the field has for something, or nothing."""
    known = VALUES.get(group, {}).get(typed.lower().replace("-", "_"))
    return f"; type {known}" if known else ""


def setting_here(typed: str) -> str:
    """The same of a setting."""
    known = SETTINGS.get(typed.lower().replace("-", "_"))
    return f"; did you mean {known}" if known else ""
