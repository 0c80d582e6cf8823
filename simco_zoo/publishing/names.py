"""The names that a published folder states: its tag and its license."""

from __future__ import annotations

import re


def check_tag(tag: str | None) -> None:
    """Raises ValueError if a tag of weights cannot be part of a model's name, as in ``simco_r18.cifar100``.

    Example:
        >>> check_tag("my photos")
        Traceback (most recent call last):
        ValueError: the tag 'my photos' cannot be part of a model's name; use letters, digits, and . _ - only.
    """
    if tag and (not re.fullmatch(r"\w[\w.-]*", tag, re.ASCII) or len(tag) > 96):
        raise ValueError(f"the tag {tag!r} cannot be part of a model's name; use letters, digits, and . _ - only.")


def check_license(license: str | None) -> None:
    """Raises ValueError if a license is not written as the Hub writes its ids; which of them exist is not known here.

    Example:
        >>> check_license("apache-2.0")
        >>> check_license("Apache 2.0")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        ValueError: the license 'Apache 2.0' is not written as an id of the Hub
    """
    if license and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ValueError(
            f"the license {license!r} is not written as an id of the Hub; write e.g. apache-2.0, mit or cc-by-nc-4.0, "
            'or "other" for one that has no id.'
        )
