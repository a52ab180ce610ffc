"""The one exception that means: the user gave something that cannot be used."""


class UserError(ValueError):
    """A mistake in what the user gave: a file, a key, a value.

    The message is one line that names the thing at fault, what came and what was expected. The command
    line prints it alone, without a traceback, and exits with status 2. Faults of our own raise anything else.
    """
