"""Commands in a comment: pure text in, the first command out.

A command is a line whose first word is `/preview` in any case. Lines that people quote or show are not commands: `>` quotes, fenced
code (``` and ~~~), lines indented by four spaces or a tab, `<pre>` and its like, HTML comments. Where Markdown would need a full
parser the reading is the careful one: what might be code is not a command. Only the first command of a comment counts.
Block structure: https://github.github.com/gfm/#fenced-code-blocks, #html-blocks, #indented-code-blocks
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

COMMAND: Final = "/preview"

_LINE_END: Final = re.compile(r"\r\n|\n|\r")
_LIST_MARKERS: Final = re.compile(r" {0,3}(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)+")
_FENCE: Final = re.compile(r" {0,3}(?P<fence>`{3,}|~{3,})(?P<info>.*)", re.DOTALL)
_INDENTED: Final = re.compile(r" {0,3}\t| {4}")
_CODE_SPAN: Final = re.compile(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)")
_CODE_SPAN_LINE_MAX: Final = 2_000
"""Longer lines are not searched for code spans: the expression's time grows with the square of what an adversary can write."""
_COMMENT: Final = re.compile(r"<!--.*?-->")
_HTML_BLOCK: Final = re.compile(r" {0,3}<(?P<tag>pre|script|style|textarea)(?=[\s>]|$)", re.IGNORECASE)


class Command(msgspec.Struct, frozen=True):
    """A `/preview` line; `words` are what follows on it, empty for the bare command that deploys."""

    words: tuple[str, ...] = ()


def parse(body: str) -> Command | None:
    """The first command of a comment, or None."""
    if COMMAND not in body.lower():  # nearly every comment; the rest of this module is for the others
        return None
    for line in _visible_lines(_LINE_END.split(body)):
        words = line.split()
        if words and words[0].lower() == COMMAND:
            return Command(tuple(words[1:]))
    return None


def _visible_lines(lines: list[str]) -> Iterator[str]:
    """Lines that are neither quoted, nor code, nor within an HTML comment; a comment later on a line is cut off."""
    at = 0
    plain_until = 0  # before this index no "<!--" has an end in its paragraph
    while at < len(lines):
        line = lines[at]
        markers = _LIST_MARKERS.match(line)
        bare = line[markers.end() :] if markers else line
        fence = _FENCE.fullmatch(bare)
        html = _HTML_BLOCK.match(bare)
        if fence is not None and not (fence["fence"][0] == "`" and "`" in fence["info"]):
            at = _after_fence(lines, at + 1, fence["fence"], _width(markers.group()) if markers else 0)
        elif bare.lstrip(" ").startswith("<!--"):
            at = _after(lines, at, "-->")
        elif html is not None:
            at = _after(lines, at, f"</{html['tag'].lower()}>")
        elif line.lstrip(" ").startswith(">") or _INDENTED.match(line):
            at += 1
        elif "<!--" not in line:
            yield line
            at += 1
        else:
            visible, at, plain_until = _without_comments(lines, at, plain_until)
            yield visible


def _width(indent: str) -> int:
    """Columns, tabs to the next fourth."""
    return len(indent.expandtabs(4))


def _after_fence(lines: list[str], at: int, opened: str, container: int) -> int:
    """Index after the fence's closing line: the same character, at least as often, and nothing else.

    `container`: columns of the list item in which the fence was opened; a line left of it ends item and fence, and is read again.
    """
    while at < len(lines):
        line = lines[at].expandtabs(4)
        indent = len(line) - len(line.lstrip(" "))
        if line.strip() and indent < container:
            return at
        at += 1
        fence = _FENCE.fullmatch(line[container:])
        if fence is not None and fence["fence"].startswith(opened) and not fence["info"].strip():
            return at
    return at


def _after(lines: list[str], at: int, end: str) -> int:
    """Index after the line that holds `end`, the first one included; without one, after the last line."""
    while at < len(lines):
        at += 1
        if end in lines[at - 1].lower():
            return at
    return at


def _without_comments(lines: list[str], at: int, plain_until: int) -> tuple[str, int, int]:
    """The line without what stands in `<!-- -->`, the next line's index, and `plain_until`.

    A comment that begins within a line may end on a later line of the same paragraph; without an end there it is plain text. That is
    remembered, so that a body full of beginnings is still read in one pass.
    """
    line = lines[at]
    if len(line) <= _CODE_SPAN_LINE_MAX:
        line = _CODE_SPAN.sub("code", line)
    line = _COMMENT.sub(" ", line)
    start = line.find("<!--")
    if start < 0 or at < plain_until:
        return line, at + 1, plain_until
    later = at + 1
    while later < len(lines) and lines[later].strip():
        if "-->" in lines[later]:
            return line[:start], later + 1, plain_until
        later += 1
    return line, at + 1, later
