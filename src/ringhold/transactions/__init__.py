"""Serializable transactions over key-value pairs and files."""
