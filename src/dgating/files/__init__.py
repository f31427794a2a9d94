"""Bytes on disk: written whole or not at all, read as data and never trusted, sealed by checksums."""

from dgating.files._folders import Contents, readable, staged, writing
from dgating.files._reading import (
    MALFORMED,
    MOST_AXES,
    MOST_BYTES,
    MOST_DEPTH,
    Stored,
    existing,
    named_json,
    read_bytes,
    read_json,
    read_json_file,
    read_safetensors,
    read_sealed_json,
    refusing,
    warn_unsealed,
    whole_numbers,
)
from dgating.files._sealing import seal_json, seal_safetensors
from dgating.files._writing import remove_left, replacing, write_bytes, write_text

__all__ = [
    "MALFORMED",
    "MOST_AXES",
    "MOST_BYTES",
    "MOST_DEPTH",
    "Contents",
    "Stored",
    "existing",
    "named_json",
    "read_bytes",
    "read_json",
    "read_json_file",
    "read_safetensors",
    "read_sealed_json",
    "readable",
    "refusing",
    "remove_left",
    "replacing",
    "seal_json",
    "seal_safetensors",
    "staged",
    "warn_unsealed",
    "whole_numbers",
    "write_bytes",
    "write_text",
    "writing",
]
