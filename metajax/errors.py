"""The one exception that bad input raises."""


class InputError(ValueError):
    """Bad input from the user, told in one sentence that names what was found and what is expected."""
