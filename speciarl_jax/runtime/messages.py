"""What an error says, in short, and what it came from."""

from collections.abc import Iterator

_LONGEST = 200  # characters


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error, what it came from, what that came from, and so on; each once.

    An error that is raised again and again, as that of a future, may lie behind itself.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def first_line(error: BaseException | str) -> str:
    """Returns the first line of an error of another library, cut where it is very long.

    Such errors may bring pages of advice that fits no reader here, and refusals are one line.
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    said = lines[0] if lines else type(error).__name__
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
