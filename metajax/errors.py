"""The exceptions that users see."""


class InputError(ValueError):
    """Bad input from the user, told in one sentence that names what was found and what is expected."""


class DivergedError(ArithmeticError):
    """The loss, its gradient or a validation is not finite; the message says when, and which state is kept where."""
