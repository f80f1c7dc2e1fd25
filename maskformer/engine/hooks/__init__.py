"""What happens around the steps of a training: averaging, reports, saving, writers."""
