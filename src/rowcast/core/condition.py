"""Conditions: the `when` of routes and rules, e.g. `{price} > 0 and {status} in ('open', 'new')`.

    condition  = and_term { "or" and_term }
    and_term   = not_term { "and" not_term }
    not_term   = [ "not" ] comparison
    comparison = operand [ ("=" | "==" | "!=" | "<>" | "<" | "<=" | ">" | ">=") operand
                         | [ "not" ] "in" "(" operand { "," operand } ")"
                         | "is" [ "not" ] "null" ]
    operand    = "{" column { ".name" } "}" | number | 'text' | "true" | "false" | "null" | "(" condition ")"

A comparison with NULL, or of values that can't be compared, is false. An operand that stands alone holds when
it is true: not NULL, false, 0, "" or an empty list. numeric, integer and float values compare as numbers.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from rowcast.core.template import Path
from rowcast.errors import ConfigError

Row = dict[str, Any]
_Eval = Callable[[Row], Any]

_TOKEN = re.compile(
    r"\s*(?:(?P<path>\{[^{}]*\})|(?P<number>-?\d+(?:\.\d+)?)|(?P<text>'(?:[^']|'')*')"
    r"|(?P<op><=|>=|<>|!=|==|=|<|>|\(|\)|,)|(?P<word>[A-Za-z]+))",
    re.ASCII,
)
_PATH = re.compile(r"\{\s*([^\s.\[\]|{}]+)((?:\.[^\s.\[\]|{}]+)*)\s*\}")

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
_NUMBERS = (int, float, Decimal)


class Condition:
    """A parsed condition. `columns` are those that it needs."""

    __slots__ = ("_evaluate", "columns", "text")

    def __init__(self, text: str, evaluate: _Eval, columns: frozenset[str]) -> None:
        self.text = text
        self._evaluate = evaluate
        self.columns = columns

    @classmethod
    def parse(cls, text: str, origin: str) -> Condition:
        """Parse a condition. Raises `ConfigError`, beginning with `origin`, that points at the place."""
        return _Parser(text, origin).parse()

    def holds(self, row: Row) -> bool:
        """Whether it holds for a row."""
        return bool(self._evaluate(row))


class _Parser:
    def __init__(self, text: str, origin: str) -> None:
        self._text = text
        self._origin = origin
        self._columns: set[str] = set()
        self._tokens: list[tuple[str, str, int]] = []
        at = 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None or match.lastgroup is None:
                at += len(text[at:]) - len(text[at:].lstrip())
                raise self._error(f"unexpected {text[at]!r}", at)
            kind = match.lastgroup
            found = match[kind]
            word = found.lower() if kind == "word" else found
            self._tokens.append((kind, word, match.start(kind)))
            at = match.end()
        self._at = 0

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
            at = self._tokens[self._at][2] if self._at < len(self._tokens) else len(self._text)
            raise self._error(f"expected {wanted!r}", at)

    def _or(self) -> _Eval:
        terms = [self._and()]
        while self._accept("or"):
            terms.append(self._and())
        return terms[0] if len(terms) == 1 else lambda row: any(term(row) for term in terms)

    def _and(self) -> _Eval:
        terms = [self._not()]
        while self._accept("and"):
            terms.append(self._not())
        return terms[0] if len(terms) == 1 else lambda row: all(term(row) for term in terms)

    def _not(self) -> _Eval:
        if self._accept("not"):
            term = self._not()
            return lambda row: not term(row)
        return self._comparison()

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
        self._expect("(")
        tests = [_compare(operator.eq, left, self._operand())]
        while self._accept(","):
            tests.append(_compare(operator.eq, left, self._operand()))
        self._expect(")")
        if negated:
            return lambda row: left(row) is not None and not any(test(row) for test in tests)
        return lambda row: any(test(row) for test in tests)

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
        constants = {"true": True, "false": False, "null": None}
        if found not in constants:
            raise self._error(f"unexpected {found!r}; columns are written {{name}}, texts 'in quotes'", at)
        return _constant(constants[found])

    def _path(self, found: str, at: int) -> _Eval:
        match = _PATH.fullmatch(found)
        if match is None:
            raise self._error(f"{found} is no column; expected {{column}} or {{column.path}}", at)
        path = Path.parse(match[1], match[2])
        self._columns.add(path.column)
        if not path.steps:
            column = path.column
            return lambda row: row.get(column)
        return lambda row: next(iter(path.find(row)), None)


def _constant(value: Any) -> _Eval:
    return lambda row: value


def _compare(compare: Callable[[Any, Any], Any], left: _Eval, right: _Eval) -> _Eval:
    def evaluate(row: Row) -> bool:
        one, other = left(row), right(row)
        if one is None or other is None or not _comparable(one, other):
            return False
        return bool(compare(one, other))

    return evaluate


def _comparable(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return isinstance(one, bool) and isinstance(other, bool)
    if isinstance(one, _NUMBERS):
        # NaN compares with nothing; a signalling one would raise.
        return isinstance(other, _NUMBERS) and one == one and other == other
    return isinstance(one, str) and isinstance(other, str)
