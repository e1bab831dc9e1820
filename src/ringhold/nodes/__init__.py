"""Storage nodes: directories and daemons that keep immutable chunks."""
