"""Text of models and data sets as plain text inside Markdown."""


def escape(text: str) -> str:
    """Returns the text on one line, with every character escaped that Markdown reads as markup."""
    for char in "\\|<>&`*_~[]":
        text = text.replace(char, "\\" + char)
    return " ".join(text.split())
