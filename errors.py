"""Exceptions for mistakes of the user."""


class UserError(ValueError):
    """Mistake in the input of the user: a file, a key or a value.

    The message is one line that names the faulty thing, its value and what was expected. The command line prints it
    without a traceback and exits with status 2. Bugs of ours raise other exceptions.
    """


class EmptySplit(UserError):
    """A split of a data set that has no sample, where at least one was expected."""


def one_line(text: object) -> str:
    r"""Format text for one line of a terminal: what could move its cursor or change its colours is escaped.

    Names of files, and texts from data, models and servers may hold escape sequences, line breaks, or bytes that are no
    UTF-8, which Python holds as halves of surrogates and cannot print.

    Example:
        >>> one_line("a\x1b[31m\n  b\udce9")
        'a\\x1b[31m b\\udce9'
    """
    words = " ".join(line.strip() for line in str(text).splitlines())
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in words)


def brief(value: object) -> str:
    """Describe a value that was handed in, for an error: its type, and its shape or the beginning of its text.

    Example:
        >>> brief("abc"), brief(None)
        ("str 'abc'", 'NoneType None')
    """
    try:
        shape = getattr(value, "shape", None)
        text = repr(value) if shape is None else f"{getattr(value, 'dtype', '')} {tuple(shape)}"
    except Exception:  # An object of the user's may raise anything; so do lists that are nested too deep.
        text = "that cannot be printed"
    return f"{one_line(type(value).__name__)[:80]} {one_line(text[:80].strip())[:80]}"
