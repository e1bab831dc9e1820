"""The coordination store: `base` is the interface, `memory` and `sqlite` are its engines."""
