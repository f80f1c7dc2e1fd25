"""What happens around the steps of a training: one hook a file."""
