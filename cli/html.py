"""The frame of a page of HTML that needs nothing but itself: neither network nor script."""

from html import escape

_DOCUMENT = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def document(title: str, style: str, body: str) -> str:
    """A whole page.

    Args:
        title: as text; what HTML has for its own is escaped.
        style: CSS, with its last newline.
        body: HTML.
    """
    return _DOCUMENT.format(title=escape(title), style=style, body=body)
