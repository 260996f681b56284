"""What strangers may send: texts that would do something on a page that took them for more, and files."""

from pathlib import Path


def put(path: Path, content: bytes) -> Path:
    """Write a file and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


HOSTILE_TEXTS = (
    "<img src=x onerror=window.owned=1>", "</svg><script>window.owned=1</script>", '"><svg onload=window.owned=1>',
    "' onmouseover='window.owned=1", "[x](javascript:window.owned=1)", "[[x|javascript:window.owned=1]]",
    "![x](http://127.0.0.1:9/x)", "</textarea><script>window.owned=1</script>", "<!--", "]]>", "&lt;b&gt;", "a|b\\|c",
    "</style><script>window.owned=1</script>", "{{constructor.constructor('window.owned=1')()}}", "${window.owned=1}",
    "<iframe srcdoc='<script>parent.owned=1</script>'>", "<a href=javascript:window.owned=1>x</a>", "\u202etxt.<b>",
)  # fmt: skip
