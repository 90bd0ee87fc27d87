"""The one time limit of the tests."""

# Seconds. Only what hangs takes as long, on any machine and however much else it does; no test says
# anything about how fast something is.
HANG = 3600
