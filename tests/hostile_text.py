"""Text that means something to a terminal, a shell, a spreadsheet, Markdown, HTML, XML, YAML or matplotlib."""

import unicodedata

from hypothesis import strategies as st

MARKUP = [
    *(
        "[fp8]",
        "[/]",
        "[bold",
        "[link=file:///x]a[/link]",
        ":fire:",
        "$x$",
        "$\\frac{",
        "$$",
        "$(touch RUN)",
        "`touch RUN`",
    ),
    *(
        ";touch RUN;",
        "\ntouch RUN\n",
        "&& touch RUN #",
        "\r\ntouch RUN",
        "'",
        '"',
        "\\",
        "\\\n",
        "#",
        "|",
        "*a*",
        "_a_",
    ),
    *("~~a~~", "<b>", "</script>", "<!--", "]]>", "&lt;", "&", "=1+2", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1"),
    *(
        "\x1b[31m",
        "\x1b]0;title\x07",
        "\x9b2J",
        "\x9d0;title\x9c",
        "\x00",
        "\x7f",
        "\x85",
        "\u2028",
        "\u2029",
        "\u202e",
    ),
    *(
        "\u2066",
        "\ufeff",
        "\ud800",
        "\ufffe",
        "\uffff",
        "\U000e0041",
        "💥",
        "é",
        "👩\u200d👩\u200d👧",
        "--flag",
        "%s",
        "{0}",
    ),
    *("a: b", "- a", "!!python/name:os.system", "*alias", "? a", "---", "...", "\n# b", "\x0b", "\x0c", "\x1c"),
]
"""Scraps that mean something to some target."""

TEXTS = st.lists(st.sampled_from(MARKUP) | st.text(max_size=6), max_size=6).map("".join)
UTF_8 = TEXTS.map(lambda text: text.encode("utf-8", "replace").decode())
"""Those that a file can hold: without halves of surrogate pairs, which a path may have."""


def is_harmless(text: str, keep: str = "") -> bool:
    """Whether a terminal shows a text as it is: no control, no line break but those kept, nothing that turns it."""
    bad = {"Cc", "Cs", "Zl", "Zp"}
    turned = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
    return all(c in keep or (unicodedata.category(c) not in bad and c not in turned) for c in text)
