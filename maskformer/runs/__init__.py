"""What keeps a run: launch, processes, signals, peers, failures, output_folder."""
