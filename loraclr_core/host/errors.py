"""Errors as ComfyUI's page shows them best."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Raise errors of the pack's own classes as built-in ValueErrors, with the original as the cause.

    ComfyUI shows an error's class before its words, by the path of the module that defines it unless it is built in.
    """
    try:
        yield
    except ValueError as error:
        if type(error) is ValueError:
            raise
        raise ValueError(str(error)) from error
