"""What is looked at before training: the records of a dataset against its files and the model."""
