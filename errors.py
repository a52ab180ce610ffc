"""Exception for mistakes of the user."""


class UserError(ValueError):
    """Mistake in the input of the user: a file, a key or a value.

    The message is one line that names the faulty thing, its value and what was expected. The command line prints it
    without a traceback and exits with status 2. Bugs of ours raise other exceptions.
    """
