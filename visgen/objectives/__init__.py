"""What is minimised, as updates that the training loop carries out in turn."""
