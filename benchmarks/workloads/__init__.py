"""What is measured: functions that set a contender up and return a callable that does one unit of its work."""
