"""What a model file says of itself, and the two errors that are sentences for the person at the board."""


class InputError(Exception):
    """Bad input: the message is one sentence for stderr, the exit code 2."""


class ModelError(RuntimeError):
    """The model is not one that the func reads, or its inference failed. The message is a sentence for the person at
    the board."""


class Model:
    """Stands in until describe() reads files."""

    def __init__(self, path):
        self.path = path


def describe(path):
    return Model(path)


def problems(model, family):
    return []
