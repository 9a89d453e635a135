"""What transformers are compared with: convolutional models and statistics of the data."""
