"""Text for where it goes: one function a target, so that it is read as it is and does nothing else there.

Whatever a name, a path or a sentence holds, it ends no line, starts no command, colours no terminal, opens no formula
and breaks no file. A character that cannot be shown is written as Python writes it, such as `\\x1b` or `\\u202e`.
"""

from __future__ import annotations

import html
import json
import re
import shlex
import unicodedata
from collections.abc import Callable
from typing import Any

JOINERS = "\u200c\u200d"
"""Format characters that change how letters join, in Persian, Hindi or a family of emoji, and nothing else."""


def _is_unsafe(char: str) -> bool:
    """Whether a character steers what shows it, or is none in files: controls, line ends, bidi, halves of a pair."""
    steers = unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in JOINERS
    return steers or char in "\ufffe\uffff"  # neither XML nor YAML has these two


def _escaped(text: str, keep: str = "") -> str:
    if text.isprintable():  # the usual case: isprintable refuses every character that is escaped here
        return text
    shown = (c if c in keep or not _is_unsafe(c) else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown)


# --- Terminals and comments ------------------------------------------------------------------------------------------


def terminal_line(text: object) -> str:
    """A text on one line of a terminal: nothing in it moves the cursor, sets a colour or title, or turns its direction.

    >>> print(terminal_line("llama [fp8]"), terminal_line("a\\nb"), terminal_line("\\x1b[31mred\\u202e"))
    llama [fp8] a\\nb \\x1b[31mred\\u202e
    """
    return _escaped(str(text))


def terminal_lines(text: object) -> str:
    """A text of several lines for a terminal: as `terminal_line`, but line feeds and tabs stay.

    >>> print(terminal_lines("a\\n\\x1b[2Jb"))
    a
    \\x1b[2Jb
    """
    return _escaped(str(text), keep="\n\t")


def comment(text: object) -> str:
    """A comment of one line in a shell script, a YAML file or the head of a CSV file, without its line break.

    >>> comment("model\\nrm -rf /")
    '# model\\\\nrm -rf /'
    """
    return f"# {terminal_line(text)}"


# --- Launch files ----------------------------------------------------------------------------------------------------


def shell_word(text: object) -> str:
    """One word of a bash command, on one line: what the program is given is the text, whatever is in it.

    >>> print(shell_word("meta-llama/Llama"), shell_word("$(reboot)"), shell_word("it's\\nx"))
    meta-llama/Llama '$(reboot)' $'it\\'s\\nx'
    """
    raw = str(text)
    if terminal_line(raw) == raw:
        return shlex.quote(raw)
    marks = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "'": "\\'", "\\": "\\\\"}
    letters = (marks.get(char) or (char if not _is_unsafe(char) else _shell_bytes(char)) for char in raw)
    return f"$'{''.join(letters)}'"


def _shell_bytes(char: str) -> str:
    """A character as bash writes its UTF-8 bytes; half of a pair, which has none, as a question mark."""
    return "".join(f"\\{byte:03o}" for byte in char.encode("utf-8", "replace") if byte)


def kubernetes_word(text: object) -> str:
    """A word of a container's command, arguments or environment, in which Kubernetes puts variables for $(NAME).

    >>> print(kubernetes_word("$(HOME)/$x"))
    $$(HOME)/$$x
    """
    return str(text).replace("$", "$$")


def json_text(content: Any, *, ascii_only: bool = False, default: Callable[[Any], Any] | None = None,
              indent: int | None = 2) -> str:  # fmt: skip
    """JSON that reads back as it was, and whose text steers no terminal that shows it.

    ascii_only: other characters as escapes too. default: what to do with a value that is not JSON.

    >>> print(json_text({"a": "é\\x9b\\u202e"}, indent=None))
    {"a": "é\\u009b\\u202e"}
    """
    text = json.dumps(content, indent=indent, ensure_ascii=ascii_only, default=default)
    if ascii_only or (text := text.replace("\x7f", "\\u007f")).replace("\n", "").isprintable():
        return text
    return "".join(json.dumps(c)[1:-1] if c != "\n" and _is_unsafe(c) else c for c in text)


def yaml_text(content: Any, **options: Any) -> str:
    """YAML that reads back as it was, and whose text steers no terminal. options: those of `yaml.safe_dump`.

    >>> print(yaml_text({"a": "é", "b": "\\u202e"}), end="")
    a: "\\xE9"
    b: "\\u202E"
    """
    import yaml

    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, **options)
    if terminal_lines(text) == text:
        return text
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=False, **options)  # type: ignore[no-any-return]


# --- Tables ----------------------------------------------------------------------------------------------------------

FORMULA = ("=", "+", "-", "@", "'")
"""How a cell begins that a spreadsheet runs as a formula [OWASP, CSV injection], or that begins as an escaped one."""


def csv_cell(text: str) -> str:
    """A text as a cell of CSV or TSV, on one line, which no spreadsheet runs; `text_of_cell` reads it back.

    What would be a formula, or steer a terminal, stands behind an apostrophe, and in it backslashes are doubled.

    >>> csv_cell("=1+2"), csv_cell("tp-ep"), csv_cell("'x"), csv_cell("\\t1")
    ("'=1+2", 'tp-ep', "''x", "'\\\\t1")
    """
    shown = terminal_line(text)
    if shown == text and not text.startswith(FORMULA):
        return text
    return "'" + "".join("\\\\" if char == "\\" else _escaped(char) for char in text)


def text_of_cell(cell: str) -> str:
    """The text that `csv_cell` wrote.

    >>> text_of_cell(csv_cell("=1+2")), text_of_cell("tp-ep")
    ('=1+2', 'tp-ep')
    """
    if not cell.startswith("'"):
        return cell
    escapes = r"\\(?:[\\nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})"
    return re.sub(escapes, lambda found: found[0].encode().decode("unicode_escape"), cell[1:])


# --- Documents -------------------------------------------------------------------------------------------------------


def markdown(text: object) -> str:
    """A text that GitHub's Markdown shows as it is, in a sentence or a cell of a table.

    >>> print(markdown("a|b [x](y) <i> $x$ &lt;"))
    a\\|b \\[x\\](y) \\<i\\> \\$x\\$ \\&lt;
    """
    return re.sub(r"([\\|`*_<>\[\]~$&])", r"\\\1", " ".join(terminal_line(text).split()))


def markdown_code(text: object) -> str:
    """A text as a piece of code in Markdown, whatever backticks it has.

    >>> markdown_code("paper"), markdown_code("a`b")
    ('`paper`', '`` a`b ``')
    """
    raw = terminal_line(text).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", raw)), default=0))
    return f"{fence}{raw}{fence}" if len(fence) == 1 else f"{fence} {raw} {fence}"


def html_text(text: object) -> str:
    """A text on one line of a page or a notebook: no markup, and no mathematics between dollars, which MathJax reads.

    >>> print(html_text("<b>\\x1b"), html_text("$x$"))
    &lt;b&gt;\\x1b <span>$</span>x<span>$</span>
    """
    return html.escape(terminal_line(text)).replace("$", "<span>$</span>")


def html_data(content: Any) -> Any:
    """Plain data whose texts a page's script puts into elements as text: each on one line, nothing turns its direction.

    >>> html_data({"name": "a\\n<b>"})
    {'name': 'a\\\\n<b>'}
    """
    if isinstance(content, dict):
        return {html_data(key): html_data(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [html_data(value) for value in content]
    return terminal_line(content) if isinstance(content, str) else content


def xml_text(text: object) -> str:
    """A text of characters that XML 1.0 has; its marks are escaped by whoever writes the element.

    >>> xml_text("a\\x00b\\ufffe")
    'a\\\\x00b\\\\ufffe'
    """
    return terminal_lines(text)


def plot_text(text: object, most: int = 160) -> str:
    """A title, a label or an entry of a legend in matplotlib, which reads $…$ as mathematics and hides _entries.

    >>> print(plot_text("$\\\\frac$ for $5"), repr(plot_text("_x")))
    \\$\\frac\\$ for \\$5 '\\u2009_x'
    """
    line = terminal_line(text)
    line = (line if len(line) <= most else f"{line[: most - 1]}…").replace("$", "\\$")
    return f"\u2009{line}" if line.startswith("_") else line


def file_stem(text: str) -> str:
    """A file's name without its ending, from a text: no folder, no space, no longer than any disk takes.

    >>> file_stem("../my sweep/é"), file_stem("..")
    ('..-my-sweep-é', '-')
    """
    name = re.sub(r"[^\w.-]+", "-", text)
    while len(name.encode()) > 180:
        name = name[:-1]
    return name if name.strip(".") else "-"
