"""``python -m ringhold.cli``."""

from ringhold.cli import main

main()
