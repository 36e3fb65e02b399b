"""Dates of acquisitions as texts, and as days since 1970-01-01 (UTC)."""

from __future__ import annotations

import datetime
import re

DATE_PATTERN = r"\d{4}-?\d{2}-?\d{2}(?:[T_ ]?\d{2}[:-]?\d{2}(?:[:-]?\d{2}(?:\.\d+)?)?)?Z?"
"""ISO dates in the forms that file names have: 2019-07-15, 20190715, 20190715T102031."""
_SECONDS_A_DAY = 86_400.0
_EPOCH = datetime.datetime(1970, 1, 1)
_DATE_DIGITS, _MINUTES, _SECONDS = 8, 12, 14


def days_since_1970(text: str) -> float:
    """Days of a date and, where given, a time of day; ValueError for what is no date."""
    if not re.fullmatch(DATE_PATTERN, text.strip()):
        raise ValueError(f"{text!r} is no date such as 2019-07-15 or 20190715T102031")
    digits = re.sub(r"\D", "", text.split(".", maxsplit=1)[0])
    forms = {_DATE_DIGITS: "%Y%m%d", _MINUTES: "%Y%m%d%H%M", _SECONDS: "%Y%m%d%H%M%S"}
    try:
        moment = datetime.datetime.strptime(digits, forms[len(digits)])
    except ValueError as error:
        raise ValueError(f"{text!r} is no date of the calendar") from error
    return (moment - _EPOCH).total_seconds() / _SECONDS_A_DAY


def date_text(days: float) -> str:
    """The date of ``days`` since 1970, such as 2019-07-15."""
    return (_EPOCH + datetime.timedelta(days=days)).strftime("%Y-%m-%d")
