"""Reads, checks and explains what is typed after `python train.py`.

Nothing in here imports another folder of the project: what constructors take is read from their
source.
"""
