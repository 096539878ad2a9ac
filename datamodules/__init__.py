"""Lightning datamodules: one a file, named like its file and its config in configs/data/."""
