"""Many rows of one form: a good row is read without the schema's ceremony.

The schema stays the one definition: what reads a value is made of its fields and their checks, and
whatever that does not take goes through `Schema.load`, which says what is wrong with it.
"""

import sys
from collections.abc import Callable
from typing import Any

import marshmallow as ma
from marshmallow import fields, validate
from marshmallow.decorators import VALIDATES_SCHEMA

Read = Callable[[Any], Any]


class _Unsure(Exception):
    """Not surely a good row."""


class RowReader:
    """Reads rows by a schema without hooks but checks of a whole row, which are all asked."""

    def __init__(self, schema: ma.Schema) -> None:
        self.schema = schema
        self.checks = [getattr(schema, name) for name, *_ in schema._hooks[VALIDATES_SCHEMA]]
        self.reads = {name: _reading(field) for name, field in schema.load_fields.items()}
        self.required = [name for name, field in schema.load_fields.items() if field.required]
        self.defaults = {
            name: field.load_default
            for name, field in schema.load_fields.items()
            if field.load_default is not ma.missing
        }

    def load(self, raw: Any) -> Any:
        """What `schema.load` gives; raises its `ValidationError`."""
        try:
            data = self.quick(raw)
            for check in self.checks:
                check(data)
        except (_Unsure, ma.ValidationError):
            return self.schema.load(raw)
        return data

    def quick(self, raw: Any) -> dict[str, Any]:
        """What a good row holds; raises `_Unsure` or `ValidationError` for any other."""
        if type(raw) is not dict:
            raise _Unsure
        reads = self.reads
        try:
            data = {name: reads[name](value) for name, value in raw.items()}
        except KeyError:
            raise _Unsure from None
        for name in self.required:
            if name not in data:
                raise _Unsure
        for name, default in self.defaults.items():
            if name not in data:
                data[name] = default() if callable(default) else default
        return data


def _reading(field: fields.Field[Any]) -> Read:
    """What reads a value of a field: by its own checks, without asking it how for each value."""
    if isinstance(field, fields.Nested):
        inner = RowReader(field.schema)
        assert not inner.checks, "only whole rows are checked"
        return inner.quick
    if field.pre_load or field.post_load:
        return lambda value: field.deserialize(value)
    if type(field) is fields.String and all(map(_is_plain, field.validators)):
        return _text(field.validators)
    own, checks = field._deserialize, field.validators

    def read(value: Any) -> Any:
        if value is None:
            raise _Unsure
        found = own(value, None, None)
        for check in checks:
            check(found)
        return found

    return read


def _is_plain(check: Any) -> bool:
    return type(check) is validate.Regexp or (
        type(check) is validate.Length and check.equal is None
    )


def _text(checks: list[Any]) -> Read:
    """Reads a text whose checks are patterns and lengths of a range."""
    sizes = [check for check in checks if type(check) is validate.Length]
    matches: list[Read] = [check.regex.match for check in checks if type(check) is validate.Regexp]
    least = max((check.min or 0 for check in sizes), default=0)
    most = min((check.max for check in sizes if check.max is not None), default=sys.maxsize)

    def read(value: Any) -> str:
        if type(value) is not str or not least <= len(value) <= most:
            raise _Unsure
        for match in matches:
            if match(value) is None:
                raise _Unsure
        return value

    return read
