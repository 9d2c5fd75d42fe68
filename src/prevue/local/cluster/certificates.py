"""The cluster's keys and certificates: one throw-away authority, elliptic keys (an RSA key takes a tenth of a second each)."""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from prevue.local.cluster.state import write_whole

VALID_DAYS = 365
"""The cluster ends with its last user; a year is longer than any demo."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority that lives in memory: its key is never written down."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def write_certificates(folder: Path, *, node_ip: str, service_ip: str, node_name: str) -> None:
    """Write all that the control plane and the node need into `folder`."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority = _authority()
    write_whole(folder / "ca.crt", authority.certificate.public_bytes(serialization.Encoding.PEM))
    names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    _issue(authority, folder / "apiserver", name="kube-apiserver", addresses=["127.0.0.1", node_ip, service_ip], hosts=names)
    _issue(authority, folder / "kubelet", name=node_name, addresses=[node_ip], hosts=[node_name])
    _issue(authority, folder / "kubelet-client", name="kube-apiserver-kubelet-client")
    service_accounts = ec.generate_private_key(ec.SECP256R1())
    write_whole(folder / "service-accounts.key", _private(service_accounts))
    public = service_accounts.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    write_whole(folder / "service-accounts.pub", public)


def _authority() -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder("prevue-local-ca", "prevue-local-ca", key)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return Authority(key, builder.sign(key, hashes.SHA256()))


def _issue(authority: Authority, path: Path, *, name: str, addresses: list[str] | None = None, hosts: list[str] | None = None) -> None:
    """Write `<path>.key` and `<path>.crt`: for a server when it has addresses, else for a client."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(name, "prevue-local-ca", key)
    use = ExtendedKeyUsageOID.SERVER_AUTH if addresses else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = builder.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = builder.add_extension(issuer, critical=False)
    alternatives: list[x509.GeneralName] = [x509.DNSName(host) for host in hosts or []]
    alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses or []]
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    certificate = builder.sign(authority.key, hashes.SHA256())
    write_whole(path.with_name(f"{path.name}.key"), _private(key))
    write_whole(path.with_name(f"{path.name}.crt"), certificate.public_bytes(serialization.Encoding.PEM))


def _builder(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=VALID_DAYS))
    )


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    # SEC 1 ("EC PRIVATE KEY"): what every component reads, the service-account signer included.
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
