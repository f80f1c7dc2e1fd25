"""What keeps a run: launch (arguments, processes), signals, failures, output_folder. Nothing of the method."""
