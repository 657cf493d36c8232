"""How a benchmark is run."""

from typing import NamedTuple


class Options(NamedTuple):
    """Quick runs are smaller and shorter; `methods` None means all."""

    quick: bool = False
    methods: tuple[str, ...] | None = None

    @property
    def rounds(self) -> int:
        """How often each alternative is timed at least."""
        return 3 if self.quick else 7

    @property
    def seconds(self) -> float:
        """How long the alternatives take turns at least."""
        return 0.0 if self.quick else 3.0
