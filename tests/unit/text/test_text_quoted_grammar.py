"""Lark grammars between the quotes of a JSON string: the same texts as without, and every way to write them."""

from __future__ import annotations

import json
import random

import llguidance
import pytest

from langport.text.quoted_grammar import quoted_grammar

BYTES = llguidance.LLTokenizer("byte")

SQL = r"""
start: select (";" select)*
select: "SELECT " column ("," column)* " FROM " NAME where?
where: " WHERE " NAME "=" value -> condition
?value: NUMBER | STRING
column: NAME | "*"
STRING: "'" /[^']*/ "'"
NAME: /[a-z_]+/
NUMBER: /[0-9]+(\.[0-9]+)?/
"""
LINES = r"""
start: line+
line: /[^\n]+/ NL
NL: "\n"
"""
CODE = r"""
// a comment
start: statement*
statement: CNAME "=" (ESCAPED_STRING | INT) NEWLINE?
         | "say" ESCAPED_STRING
%import common (CNAME, INT)
%import common.ESCAPED_STRING
%import common.NEWLINE
%import common.WS -> SPACE
%ignore SPACE
"""
PATCH = r"""
start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?

hunk: add_hunk | delete_hunk | update_hunk
add_hunk: "*** Add File: " filename LF add_line+
delete_hunk: "*** Delete File: " filename LF
update_hunk: "*** Update File: " filename LF change_move? change?

filename: /(.+)/
add_line: "+" /(.*)/ LF -> line

change_move: "*** Move to: " filename LF
change: (change_context | change_line)+ eof_line?
change_context: ("@@" | "@@ " /(.+)/) LF
change_line: ("+" | "-" | " ") /(.*)/ LF
eof_line: "*** End of File" LF

%import common.LF
"""
"""As agents that edit code send it."""
ADDED = '*** Begin Patch\n*** Add File: a.py\n+print("hi\\n")\n+\n+\tx = 1\n'
PATCHED = ADDED + "*** Update File: src/b c.py\n@@ def f():\n-    return \"a\"\n+    return 'b'\n*** End Patch\n"
COMBINED = r"""
start: A
A: /[a-z\n]+/ & ~(B | C)
B: /.*bad.*/
C: "c" & /./
"""
GRAMMARS = {
    "literals": (r'start: "a\nb" | "\"" | "c\\d"i | "\t"', ["a\nb", '"', "c\\d", "C\\D", "\t"], ["a", "c\\n", 'a"b']),
    "lines": (LINES, ["ab\ncd\n", 'a"b\\\n', "x\n"], ["", "a", "\n", "a\n\n"]),
    "sql": (SQL, ["SELECT a,b FROM t", "SELECT * FROM t WHERE a='x\"\n\\y'"], ["SELECT", 'SELECT a FROM t WHERE a="']),
    "code": (CODE, ['a = "x\\ny"\nb=1', "", 'say "b"'], ['a = "x\ny', 'say\n"b" 1']),
    "patch": (PATCH, [PATCHED], [PATCHED.replace("+p", "p"), ADDED]),
    "any": (r"start: /(.|\n)*/", ["", 'a"\\\n\x01b'], []),
    "everything": (r"start: /[\s\S]{2,4}/", ["ab", '"\n\\"'], ["a", "abcde"]),
    "class": (r'start: /[[:alpha:]"&&[^b]]+\pL?\.\//', ['a"c./', "aé./"], ["b./", "a."]),
    "flags": (r"start: /(?i)ab.c/s | /d.e/ | /(?-i:F)g/i", ["AB\nC", 'd"e', "FG"], ["d\ne", "fg", "ab"]),
    "and": (COMBINED, ["good", "a\n"], ["bad", "c", 'a"']),
    "range": (
        r'start: ("!".."&")~2..3 X?' "\n" 'X: ("a".."c"){2} [Y]\nY: "\\x22"',
        ['!"', '"#&ab', '!!cc"'],
        ["!", '!"#$ab"'],
    ),
    "controls": (r"start: /[\x00-\x1f]+/", ["\x00\x0b\x1f\x7f"[:3], "\n\r\t\b\f"], ["\x7f", "a"]),
    "group": (r'start: /(?:a|b\n|(?P<x>c"))+d?/', ['ab\nc"d', "a"], ["b", "d"]),
}


def matches(grammar: str, text: str) -> bool:
    matcher = llguidance.LLMatcher(BYTES, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()[:300]
    return all(matcher.consume_token(byte) for byte in text.encode()) and matcher.is_accepting()


def quoted(grammar: str) -> str:
    start, rules = quoted_grammar(grammar)
    return f'start: "\\"" {start} "\\""\n{rules}'


@pytest.mark.parametrize("name", GRAMMARS)
def test_the_same_texts_follow_it(name):
    grammar, good, bad = GRAMMARS[name]
    written = quoted(grammar)
    for text in good:
        assert matches(grammar, text), text
        assert matches(written, json.dumps(text, ensure_ascii=False)), text
    for text in bad:
        assert not matches(grammar, text), text
        assert not matches(written, json.dumps(text, ensure_ascii=False)), text


@pytest.mark.parametrize("name", GRAMMARS)
def test_what_can_be_written_follows_it(name):
    """Random walks through what may come next end with a text of the grammar."""
    grammar, _, _ = GRAMMARS[name]
    draw = random.Random(name)
    start = llguidance.LLMatcher(BYTES, quoted(grammar), log_level=0)
    for _ in range(10):
        matcher, written = start.deep_copy(), bytearray()
        while not matcher.is_stopped() and len(written) < 60:
            mask = matcher.compute_bitmask()
            allowed = [byte for byte in range(0x80) if mask[byte // 8] >> (byte % 8) & 1]
            if not allowed:
                break
            byte = ord('"') if ord('"') in allowed and draw.random() < 0.3 else draw.choice(allowed)
            matcher.consume_token(byte)
            written.append(byte)
        if matcher.is_accepting():
            text = json.loads(written)
            assert matches(grammar, text.lstrip() if "%ignore" in grammar else text), text


@pytest.mark.parametrize(
    ("grammar", "problem"),
    [
        ('start: %json {"type": "string"}', "json"),
        ("start[lazy]: /a/", "options"),
        ('start: <end> "a"', "<end>"),
        ("start: /a b/x", "flag x"),
        ("start: A\nA: " + "(" * 2000 + '"a"' + ")" * 2000, "nested too deeply"),
        ("%import common.NOTHING\nstart: NOTHING", "common.NOTHING"),
    ],
)
def test_what_is_not_larks_own_is_refused(grammar, problem):
    with pytest.raises(ValueError, match=problem):
        quoted_grammar(grammar)


def test_names_of_two_grammars_do_not_meet():
    one, other = (quoted_grammar(f'start: A "{letter}"\nA: "x"') for letter in "ab")
    joined = f"start: {one[0]} {other[0]}\n{one[1]}\n{other[1]}"
    assert matches(joined, "xaxb")
