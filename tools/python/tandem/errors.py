"""What can go wrong: whatever the engine refuses is a :class:`TandemError`.

Arguments of a wrong type raise ``TypeError`` and the like, as everywhere in Python.
"""


class TandemError(Exception):
    """Something failed; the text says what, and why."""


class ArgumentError(TandemError, ValueError):
    """An argument makes no sense, by itself or with others."""


class FileError(TandemError, OSError):
    """A file cannot be read or written, or is not what it should be."""


class ModelError(TandemError):
    """A model cannot be run."""


class BundleError(TandemError):
    """A bundle is damaged, or not for the model."""


class CompositionError(TandemError):
    """Adapters cannot be used with the model, or with each other."""


class SessionError(TandemError):
    """Tokens cannot be evaluated."""


class ContextFullError(SessionError):
    """The context has no room for so many tokens."""


class OutOfMemoryError(SessionError, MemoryError):
    """The machine has too little memory."""


class PromptError(TandemError):
    """A text or a conversation cannot be turned into a prompt."""


class TokenizerError(TandemError):
    """The vocabulary cannot be used, or not express a text."""


class GrammarError(TandemError):
    """An answer cannot be held to a schema or an expression."""


class ForkedError(TandemError, RuntimeError):
    """The session was made before the process was forked: its threads are not in this one. Make another."""
