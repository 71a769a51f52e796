"""Conditions: the `when` of routes and rules, e.g. `{price} > 0 and {status} in ('open', 'new')`.

    condition  = and_term { "or" and_term }
    and_term   = not_term { "and" not_term }
    not_term   = [ "not" ] comparison
    comparison = operand [ ("=" | "==" | "!=" | "<>" | "<" | "<=" | ">" | ">=") operand
                         | [ "not" ] "in" "(" operand { "," operand } ")"
                         | "is" [ "not" ] "null" ]
    operand    = "{" path "}" | number | 'text' | "true" | "false" | "null" | "(" condition ")"

A path is that of a template, without `[*]`; a quote in a text is doubled; words may be in capitals.

A comparison with NULL, or of values that can't be compared, is false, whichever way it is put: `{a} != 1` is
false too when a is NULL or a text, and `{a} not in (1, 2)` is `{a} != 1 and {a} != 2`. Texts compare with texts,
by code point; booleans with booleans; numbers with numbers, by value; NaN with nothing. An operand that stands
alone holds when it is true: not NULL, false, 0, "" or an empty list or object.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from rowcast.core.template import EACH, Path
from rowcast.errors import ConfigError

Row = dict[str, Any]
_Eval = Callable[[Row], Any]

MAX_DEPTH = 50
"""Parentheses and `not` within each other: the parser and what it makes call themselves."""

_TOKEN = re.compile(
    r"""\s*(?:(?P<path>\{(?:"(?:[^"]|"")*"|[^{}"])*\})|(?P<number>-?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?)"""
    r"""|(?P<text>'(?:[^']|'')*')|(?P<op><=|>=|<>|!=|==|=|<|>|\(|\)|,)|(?P<word>[A-Za-z_]\w*))""",
    re.ASCII,
)

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CONSTANTS = {"true": True, "false": False, "null": None}


class Condition:
    """A parsed condition. `columns` are those that it needs."""

    __slots__ = ("_evaluate", "columns", "text")

    def __init__(self, text: str, evaluate: _Eval, columns: frozenset[str]) -> None:
        self.text = text
        self.columns = columns
        self._evaluate = evaluate

    @classmethod
    def parse(cls, text: str, origin: str) -> Condition:
        """Parse a condition. Raises `ConfigError`, beginning with `origin`, that points at the place."""
        return _Parser(text, origin).parse()

    def holds(self, row: Row) -> bool:
        """Whether it holds for a row. A column that the row lacks is NULL."""
        return bool(self._evaluate(row))


class _Parser:
    """Recursive descent, one method for each rule of the grammar; each returns what evaluates its part."""

    def __init__(self, text: str, origin: str) -> None:
        self._text = text
        self._origin = origin
        self._columns: set[str] = set()
        self._depth = 0
        self._tokens = self._split()
        self._at = 0

    def _split(self) -> list[tuple[str, str, int]]:
        """The tokens: (kind, text, place)."""
        tokens: list[tuple[str, str, int]] = []
        at = 0
        while at < len(self._text.rstrip()):
            match = _TOKEN.match(self._text, at)
            if match is None or match.lastgroup is None:
                rest = self._text[at:].lstrip()
                raise self._error(_strange(rest), len(self._text) - len(rest))
            kind = match.lastgroup
            found = match[kind]
            tokens.append((kind, found.lower() if kind == "word" else found, match.start(kind)))
            at = match.end()
        return tokens

    def _error(self, what: str, at: int) -> ConfigError:
        return ConfigError(f"{self._origin}: in the condition {self._text!r}, column {at + 1}: {what}")

    def parse(self) -> Condition:
        evaluate = self._or()
        if self._at < len(self._tokens):
            _, found, at = self._tokens[self._at]
            raise self._error(f"unexpected {found!r}", at)
        return Condition(self._text, evaluate, frozenset(self._columns))

    def _peek(self) -> str:
        """The next operator or word; "" for anything else."""
        if self._at < len(self._tokens) and self._tokens[self._at][0] in ("op", "word"):
            return self._tokens[self._at][1]
        return ""

    def _accept(self, *wanted: str) -> str:
        found = self._peek()
        if found and found in wanted:
            self._at += 1
            return found
        return ""

    def _expect(self, wanted: str) -> None:
        if not self._accept(wanted):
            raise self._error(f"expected {wanted!r}", self._place())

    def _place(self) -> int:
        return self._tokens[self._at][2] if self._at < len(self._tokens) else len(self._text)

    def _or(self) -> _Eval:
        terms = [self._and()]
        while self._accept("or"):
            terms.append(self._and())
        return terms[0] if len(terms) == 1 else _any(terms)

    def _and(self) -> _Eval:
        terms = [self._not()]
        while self._accept("and"):
            terms.append(self._not())
        return terms[0] if len(terms) == 1 else _all(terms)

    def _not(self) -> _Eval:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"more than {MAX_DEPTH} parentheses and nots within each other", self._place())
        evaluate = _negate(self._not()) if self._accept("not") else self._comparison()
        self._depth -= 1
        return evaluate

    def _comparison(self) -> _Eval:
        left = self._operand()
        if symbol := self._accept(*_OPERATORS):
            return _compare(_OPERATORS[symbol], left, self._operand())
        if self._accept("is"):
            negated = bool(self._accept("not"))
            self._expect("null")
            return (lambda row: left(row) is not None) if negated else (lambda row: left(row) is None)
        negated = bool(self._accept("not"))
        if negated or self._peek() == "in":
            self._expect("in")
            return self._in(left, negated=negated)
        return left

    def _in(self, left: _Eval, *, negated: bool) -> _Eval:
        compare = operator.ne if negated else operator.eq
        self._expect("(")
        tests = [_compare(compare, left, self._operand())]
        while self._accept(","):
            tests.append(_compare(compare, left, self._operand()))
        self._expect(")")
        return _all(tests) if negated else _any(tests)

    def _operand(self) -> _Eval:
        if self._at >= len(self._tokens):
            raise self._error("expected a value", len(self._text))
        kind, found, at = self._tokens[self._at]
        self._at += 1
        if kind == "path":
            return self._path(found, at)
        if kind == "number":
            return _constant(Decimal(found))
        if kind == "text":
            return _constant(found[1:-1].replace("''", "'"))
        if found == "(":
            inner = self._or()
            self._expect(")")
            return inner
        if found not in _CONSTANTS:
            raise self._error(f"unexpected {found!r}; columns are written {{name}}, texts 'in quotes'", at)
        return _constant(_CONSTANTS[found])

    def _path(self, found: str, at: int) -> _Eval:
        path = Path.parse(found[1:-1].strip())
        if path is None or EACH in path.steps:
            raise self._error(f"{found} is no column; expected {{column}} or {{column.path}}", at)
        self._columns.add(path.column)
        if not path.steps:
            column = path.column
            return lambda row: row.get(column)
        return lambda row: next(iter(path.find(row)), None)


def _strange(rest: str) -> str:
    """What is wrong with a text that is no token."""
    if rest[0] == "'":
        return "a text without its closing quote"
    if rest[0] == '"':
        return "texts are written 'in single quotes'"
    if rest[0] == "{":
        return "{ without }"
    return f"unexpected {rest[0]!r}"


def _constant(value: Any) -> _Eval:
    return lambda row: value


def _negate(term: _Eval) -> _Eval:
    return lambda row: not term(row)


def _any(terms: list[_Eval]) -> _Eval:
    return lambda row: any(term(row) for term in terms)


def _all(terms: list[_Eval]) -> _Eval:
    return lambda row: all(term(row) for term in terms)


def _compare(compare: Callable[[Any, Any], Any], left: _Eval, right: _Eval) -> _Eval:
    def evaluate(row: Row) -> bool:
        one, other = left(row), right(row)
        if isinstance(one, str):
            return isinstance(other, str) and bool(compare(one, other))
        if isinstance(one, bool) or isinstance(other, bool):
            return isinstance(one, bool) and isinstance(other, bool) and bool(compare(one, other))
        if not isinstance(one, (int, float, Decimal)) or not isinstance(other, (int, float, Decimal)):
            return False
        # As Postgres does: a numeric meets a double as a double, or 0.1 would not be 0.1.
        if isinstance(one, float) and isinstance(other, Decimal):
            other = float(other)
        elif isinstance(one, Decimal) and isinstance(other, float):
            one = float(one)
        # What differs from itself is NaN.
        return one == one and other == other and bool(compare(one, other))

    return evaluate
