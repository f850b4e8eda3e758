"""Numbers as people read them."""


def duration(seconds: float) -> str:
    """A duration for people: "40 seconds", "41 minutes", "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def counted(number: int, one: str, several: str = "") -> str:
    """A number with what it counts: "1 image", "2,000 images". several: unless that is `one` with an s."""
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


def in_seconds(number: float) -> str:
    """A number of seconds with two decimals, below 0.1 with two digits; without the unit: "1.23", "0.12", "0.0027"."""
    return f"{number:.2f}" if number >= 0.1 else f"{number:.2g}"
