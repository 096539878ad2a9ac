"""What train.py can be asked to do, a file each, and what they share."""
