"""The exceptions that users see, and two checks that raise them."""

from typing import Any


class InputError(ValueError):
    """Bad input from the user, told in one sentence that names what was found and what is expected."""


class DivergedError(ArithmeticError):
    """The loss, its gradient or a validation is not finite; the message says when, and which state is kept where."""


def expected(name: str, given: Any, kind: type) -> None:
    """An `InputError` where the argument `name` is not of this type."""
    if not isinstance(given, kind):
        raise InputError(f"{name} is of type {type(given).__name__}, expected {kind.__name__}.")


def function(name: str, given: Any, such_as: str) -> None:
    """An `InputError` where the argument `name` is no function."""
    if not callable(given):
        raise InputError(f"{name} is of type {type(given).__name__}, expected a function, such as {such_as}.")
