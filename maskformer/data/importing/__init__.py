"""What other programs wrote, as a dataset that training reads: a file for each format, and the writer."""
