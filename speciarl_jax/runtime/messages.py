"""Short texts for error messages."""

_LONGEST = 200  # characters


def first_line(error: BaseException | str) -> str:
    """Returns the first line of an error of another library, cut where it is very long.

    Such errors may bring pages of advice that fits no reader here, and refusals are one line.
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    said = lines[0] if lines else type(error).__name__
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
