"""The one error for everything a user can mend."""


class InputError(ValueError):
    """Something given from outside is wrong; the message says what, where, and what would be right."""
