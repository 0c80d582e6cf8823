"""The error that everything about weights ends in."""


class WeightsError(RuntimeError):
    """Weights are missing, damaged, or do not fit; the message says which file and what to do."""
