"""The one error of this room: a model, adapter or plan that cannot be used, with a stable code."""


class ModelRefused(ValueError):
    """A base model, an adapter or a plan that is refused; `code` is stable, the text fits on one line."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
