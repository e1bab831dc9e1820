"""How a cluster is found, made and administered; the faces are `ringhold.cluster` and `.aio`."""
