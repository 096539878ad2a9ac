"""Files, checkpoints, folders of runs, and where trained models come from and go to."""
