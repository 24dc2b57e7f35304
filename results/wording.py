"""Words that several messages need."""


def counted(number: int, unit: str) -> str:
    """ "1 frame", "2 frames"."""
    return f"{number} {unit}{'s' * (number != 1)}"
