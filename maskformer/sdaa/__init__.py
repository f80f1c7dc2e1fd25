"""For Tecorigin's cards: the vendor's log line, and the comparison of two loss curves."""
