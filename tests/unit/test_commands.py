"""Which comment is a command, and which only shows, quotes or hides one."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prevue.commands import Command, parse

BARE = Command()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("/preview", BARE),
        ("/PREVIEW", BARE),
        ("/Preview  \r\n", BARE),
        ("   /preview", BARE),
        ("Looks good.\n\n/preview\n\nThanks!", BARE),
        ("windows\r\n/preview\r\nends", BARE),
        ("old mac\r/preview\r", BARE),
        ("/preview <!-- hidden remark -->", BARE),
        ("<!-- a form's hint -->\n/preview", BARE),
        ("text <!-- never ended\n/preview", BARE),
        ("Use `<!--` for remarks.\n/preview", BARE),
        ("> quoted\n/preview", BARE),
        ("```\ncode\n```\n/preview", BARE),
        ("~~~ sh\ncode\n~~~~\n/preview", BARE),
        ("```not a fence``` text\n/preview", BARE),
        ("- ```\n  code\n  ```\n/preview", BARE),
        ("- ```\n  code\n/preview", BARE),
        ("<details>\n\n/preview\n\n</details>", BARE),
        ("/preview please", Command(("please",))),
        ("/preview stop now\n/preview", Command(("stop", "now"))),
    ],
)
def test_commands_are_found(body: str, expected: Command) -> None:
    assert parse(body) == expected


@pytest.mark.parametrize(
    "body",
    [
        "",
        "hello",
        "please /preview",
        "/previews",
        "/preview-env",
        "//preview",
        "\\/preview",
        "`/preview`",
        "**/preview**",
        "- /preview",
        "1. /preview",
        "# /preview",
        "> /preview",
        ">/preview",
        "   > /preview",
        "> > /preview",
        "    /preview",
        "\t/preview",
        "  \t/preview",
        "```\n/preview\n```",
        "```sh\n/preview\n```",
        "   ```\n/preview\n   ```",
        "````\n```\n/preview\n````",
        "```\n~~~\n/preview\n```",
        "```\n    ```\n/preview\n```",
        "```\n``` no end\n/preview",
        "~~~\n/preview\n~~~",
        "~~~ `x`\n/preview",
        "```\n/preview",
        "- ```\n  /preview\n  ```",
        "1. ~~~\n   /preview\n   ~~~",
        "<!-- /preview -->",
        "<!--\n/preview\n-->",
        "<!--\n\n/preview\n\n-->",
        "<!--\n/preview",
        "text <!-- begun\n/preview\nended -->",
        "<pre>\n/preview\n</pre>",
        "<PRE class='x'>\n\n/preview\n\n</pre>",
        "<script>\n/preview\n</script>",
    ],
)
def test_shown_quoted_and_hidden_commands_are_none(body: str) -> None:
    assert parse(body) is None


@given(st.text())
def test_any_text_is_read(body: str) -> None:
    parse(body)


_FRAGMENTS = st.lists(
    st.sampled_from(
        [
            "/preview",
            "/PREVIEW x",
            "```",
            "~~~",
            "````",
            "> ",
            "- ",
            "10. ",
            "    ",
            "\t",
            "<!--",
            "-->",
            "<pre>",
            "</pre>",
            "`",
            "a",
            " ",
            "\n",
            "\n\n",
            "\r\n",
        ]
    ),
    max_size=40,
).map("".join)


@given(_FRAGMENTS)
def test_any_mixture_of_markdown_is_read(body: str) -> None:
    parse(body)


@given(_FRAGMENTS)
def test_a_quoted_comment_is_never_a_command(body: str) -> None:
    assert parse("\n".join("> " + line for line in body.replace("\r", "\n").split("\n"))) is None


@given(_FRAGMENTS)
def test_an_indented_comment_is_never_a_command(body: str) -> None:
    assert parse("\n".join("    " + line for line in body.replace("\r", "\n").split("\n"))) is None


@given(_FRAGMENTS, st.sampled_from("`~"))
def test_a_fenced_comment_is_never_a_command(body: str, char: str) -> None:
    fence = char * 60
    assert parse(f"{fence}\n{body}\n{fence}") is None


@given(_FRAGMENTS)
def test_a_command_after_the_end_of_a_fence_is_found(body: str) -> None:
    fence = "`" * 60
    assert parse(f"{fence}\n{body}\n{fence}\n/preview") == BARE


@pytest.mark.parametrize(
    "body",
    [
        "x <!--\n" * 9_000 + "/preview x",
        "<!-- -->" * 8_000 + "/preview",
        "".join("`" * n + " " for n in range(1, 350)) + "<!--\n/preview x",
        "- " * 30_000 + "/preview",
        "`" * 65_000 + "\n/preview x",
        "> " * 30_000 + "\n/preview x",
    ],
    ids=["comment beginnings", "comments", "backticks", "list markers", "one fence", "quotes"],
)
def test_the_longest_comment_costs_little(body: str) -> None:
    """Whoever can comment can choose the text; GitHub takes 65,536 characters."""
    started = time.perf_counter()
    parse(body)
    assert time.perf_counter() - started < 0.5
