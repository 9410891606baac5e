"""What mkdocs makes while it builds the site: the methods from their classes, and pages of text that lives outside docs/.

Nothing of `ptp` is imported: the classes are read as text, so the site's environment needs no torch.
"""

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
BROUGHT = {"CHANGELOG.md": "changelog.md", "src/ptp/tiny/weights/README.md": "ptp_tiny.md", "jury/README.md": "jury.md"}
"""Files of the repository -> the pages they become."""
PAGES = BROUGHT | {"README.md": "index.md"}
METHODS = re.compile(r"^<!-- methods: .* -->$", re.MULTILINE)
SECTION = re.compile(r"^<!-- README: (.+) -->\n.*$", re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are brought from elsewhere."""
    for source, page in BROUGHT.items():
        files.append(File.generated(config, page, content=relinked((ROOT / source).read_text(), source, page)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fill in what a page asks for by a comment, and mend the links that leave docs/.

    The line behind a comment that asks for a section is for those who read the file itself, and goes.
    """
    here = page.file.src_uri
    markdown = METHODS.sub(lambda _: methods(), markdown)
    markdown = SECTION.sub(lambda found: relinked(section(found[1]), "README.md", here), markdown)
    return markdown if here in BROUGHT.values() else relinked(markdown, f"docs/{here}", here)


def relinked(text: str, source: str, page: str) -> str:
    """Links of a file of the repository as its page needs them; the build stops at one to what is no page."""

    def mended(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        target = PAGES.get(target) or target.removeprefix("docs/")
        return posixpath.relpath(target, posixpath.dirname(page) or ".")

    return LINK.sub(mended, text)


def section(title: str) -> str:
    """A section of the README, with its heading."""
    text = (ROOT / "README.md").read_text()
    found = re.search(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise PluginError(f"README.md has no section {title!r}, which a page of the site shows.")
    return found[0]


def methods() -> str:
    """A section for each method of `METHODS`: the line of its module, and its class by mkdocstrings."""
    tree = ast.parse((ROOT / "src/ptp/methods/__init__.py").read_text())
    homes = {name.name: node.module for node in tree.body if isinstance(node, ast.ImportFrom) for name in node.names}
    (listed,) = (node.value for node in tree.body if isinstance(node, ast.AnnAssign) and node.target.id == "METHODS")
    parts = []
    for key, kind in zip(listed.keys, listed.values, strict=True):
        home = homes[kind.id]
        line = ast.get_docstring(ast.parse((ROOT / f"src/ptp/methods/{home}.py").read_text()))
        parts.append(f"## {key.value} {{ #{key.value} }}\n\n{line}\n\n::: ptp.methods.{home}.{kind.id}\n")
    return "\n".join(parts)
