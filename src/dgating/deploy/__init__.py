"""Compact models for use elsewhere: export to other formats, profile, measure."""

from dgating.deploy._export import Exported, export, export_bytes
from dgating.deploy._profile import Profile, profile

__all__ = [
    "Exported",
    "Profile",
    "export",
    "export_bytes",
    "profile",
]
