"""``python -m ptp`` is the `ptp` command."""

from .cli import main

main()
