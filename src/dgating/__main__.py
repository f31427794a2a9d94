"""``python -m dgating``."""

from dgating.cli import main

main()
