"""What can be wrong with a checkpoint. Every message names the file or field at fault."""


class ModelError(Exception):
    """A checkpoint that cannot be served: unknown family, unusable config, bad tensors."""


class UnsupportedModelError(ModelError):
    """The checkpoint asks for something that is not implemented; the message says what is."""


class WeightsError(ModelError):
    """A tensor is missing, extra, misshapen or unreadable."""
