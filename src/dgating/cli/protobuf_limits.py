"""A protobuf message before it is parsed: a byte of it can become two hundred bytes of memory."""

from __future__ import annotations

from typing import Any

MESSAGE, FIELD, PACKED = 500, 64, 26  # bytes of memory, measured: of a message, of a field, of a byte of packed numbers
MEMORY = 2**27
DEPTH = 64
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
SCALARS = (1, 2, 3, 4, 5, 6, 7, 8, 13, 14, 15, 16, 17, 18)  # kinds of fields that a file can pack


def check_size(content: memoryview, descriptor: Any) -> None:
    """Walk through the fields of a message without building it.

    Args:
        content: the message.
        descriptor: its type.

    Raises:
        ValueError: it is damaged, too deep, or would take more memory than any honest one, its bytes aside.
    """
    budget = MEMORY
    todo = [(0, len(content), descriptor, 1)]
    while todo:
        at, end, kind, depth = todo.pop()
        if depth > DEPTH:
            raise ValueError(f"expected messages at most {DEPTH} levels deep")
        fields = kind.fields_by_number
        while at < end:
            key, at = _varint(content, at, end)
            field = fields.get(key >> 3)
            wire = key & 7
            length = 0
            if wire == VARINT:
                _, at = _varint(content, at, end)
            elif wire in (FIXED32, FIXED64):
                at += 4 if wire == FIXED32 else 8
            elif wire == BYTES:
                length, at = _varint(content, at, end)
                if field is not None and field.message_type is not None:
                    todo.append((at, at + length, field.message_type, depth + 1))
                    budget -= MESSAGE
                elif field is not None and field.type in SCALARS and field.type not in (1, 2):
                    budget -= PACKED * length
                at += length
            else:
                raise ValueError(f"a field of kind {wire}, which ONNX does not have")
            if at > end:
                raise ValueError("a field that ends after its message")
            budget -= FIELD
            if budget < 0:
                raise ValueError(f"its fields would take more than {MEMORY:,} bytes of memory")


def _varint(content: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a number that does not end")
