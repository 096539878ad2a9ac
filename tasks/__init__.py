"""The tasks that train.py can be asked to do, one file each, and the code that they share."""
