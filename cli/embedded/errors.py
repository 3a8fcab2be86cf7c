"""What can stop an embedded service from running, as one line for a person."""


class EmbeddedError(Exception):
    """Something outside our code keeps a service from running; the text is one line for a person."""


class MissingWheel(EmbeddedError):
    """A package that carries a server's binaries is not installed."""


class PortOccupied(EmbeddedError):
    """Another program listens on the port that was asked for."""


class FolderUnusable(EmbeddedError):
    """The data folder cannot be created, written or entered by the account that needs it."""


class FolderInUse(EmbeddedError):
    """Another instance is running on the same data folder."""


class ServiceFailed(EmbeddedError):
    """A server started and ended, or never answered."""
