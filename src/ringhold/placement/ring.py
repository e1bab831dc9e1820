"""The ring as the rest of Ringhold sees it.

It is the extension class itself: a Python call in between would cost as much as the lookup.
"""

from ringhold.core._ring import Ring

__all__ = ["Ring"]
