"""audit: what a stranger can check of a release, with nothing but its folder."""

from stillhouse.audit.bundle import verify

__all__ = ["verify"]
