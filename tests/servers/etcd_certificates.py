"""Certificates for etcd over TLS: the server's, a client's, and those of an authority that the
other side does not trust."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificates:
    """Files in PEM. `foreign` are a client's certificate and key of another authority."""

    ca: Path
    server: tuple[Path, Path]
    client: tuple[Path, Path]
    foreign_ca: Path
    foreign: tuple[Path, Path]


def make_certificates(directory: Path, host: str) -> Certificates:
    """The server's names `host` alone."""
    import trustme

    directory.mkdir()

    def authority(name: str) -> tuple[trustme.CA, Path]:
        ca = trustme.CA()
        path = directory / f"{name}.pem"
        ca.cert_pem.write_to_path(str(path))
        return ca, path

    def pair(ca: trustme.CA, name: str, identity: str) -> tuple[Path, Path]:
        issued = ca.issue_cert(identity)
        certificate, key = directory / f"{name}.pem", directory / f"{name}-key.pem"
        issued.cert_chain_pems[0].write_to_path(str(certificate))
        issued.private_key_pem.write_to_path(str(key))
        return certificate, key

    ours, ca = authority("ca")
    theirs, foreign_ca = authority("foreign-ca")
    return Certificates(
        ca,
        server=pair(ours, "server", host),
        client=pair(ours, "client", "client.example"),
        foreign_ca=foreign_ca,
        foreign=pair(theirs, "foreign", "client.example"),
    )
