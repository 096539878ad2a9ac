"""The configuration of train.py: YAML files, one folder a group, and the check of what is typed."""
