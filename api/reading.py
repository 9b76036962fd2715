"""Many rows of one form: a good row is read without the schema's ceremony.

The schema stays the one definition: its fields read and check every value, and whatever they do not
take goes through `Schema.load`, which says what is wrong with it.
"""

from collections.abc import Callable
from typing import Any

import marshmallow as ma
from marshmallow import fields


class _Unsure(Exception):
    """Not surely a good row."""


class RowReader:
    """Reads rows by a schema without hooks but `check`, its check of a whole row."""

    def __init__(
        self, schema: ma.Schema, check: Callable[[dict[str, Any]], object] | None = None
    ) -> None:
        self.schema = schema
        self.check = check
        self.names = frozenset(schema.load_fields)
        self.inner = {
            name: RowReader(field.schema)
            for name, field in schema.load_fields.items()
            if isinstance(field, fields.Nested)
        }

    def load(self, raw: Any) -> Any:
        """What `schema.load` gives; raises its `ValidationError`."""
        try:
            data = self._quick(raw)
            if self.check is not None:
                self.check(data)
        except (_Unsure, ma.ValidationError):
            return self.schema.load(raw)
        return data

    def _quick(self, raw: Any) -> dict[str, Any]:
        if type(raw) is not dict or not self.names.issuperset(raw):
            raise _Unsure
        data: dict[str, Any] = {}
        for name, field in self.schema.load_fields.items():
            if name in raw:
                inner = self.inner.get(name)
                value = raw[name]
                data[name] = inner._quick(value) if inner else field.deserialize(value, name, raw)
            elif field.required:
                raise _Unsure
            elif field.load_default is not ma.missing:
                default = field.load_default
                data[name] = default() if callable(default) else default
        return data
