"""What the benchmark times: one function that sets up each unit of work."""
