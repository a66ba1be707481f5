"""Bytes of the wire contract and of RFC 9420, written from docs/bytes.md and the RFC alone."""

import base64
import hashlib
import json
import struct


def uint8(value):
    return struct.pack(">B", value)


def uint16(value):
    return struct.pack(">H", value)


def uint64(value):
    return struct.pack(">Q", value)


def int64(value):
    return struct.pack(">q", value)


def vector(data):
    """A vector <V>: its length in one, two or four bytes, then the bytes (RFC 9420 section 2.1.2)."""
    length = len(data)
    if length < 64:
        return uint8(length) + data
    if length < 16384:
        return uint16(0x4000 | length) + data
    return struct.pack(">I", 0x80000000 | length) + data


class Reader:
    """Reads from the front of bytes."""

    def __init__(self, data):
        self.rest = data

    def take(self, length):
        if length > len(self.rest):
            raise ValueError("truncated")
        taken, self.rest = self.rest[:length], self.rest[length:]
        return taken

    def uint16(self):
        return struct.unpack(">H", self.take(2))[0]

    def vector(self):
        first = self.take(1)[0]
        size = {0: 1, 1: 2, 2: 4}[first >> 6]
        head = bytes([first & 0x3F]) + self.take(size - 1)
        return self.take(int.from_bytes(head, "big"))


def signed_content(label, content):
    """What is signed outside MLS: label<V> content<V>."""
    return vector(label.encode()) + vector(content)


def enroll_proof(domain, invitation, csr, time):
    """Content of `chancery enroll 1`."""
    return (
        vector(domain.encode())
        + hashlib.sha256(invitation.encode()).digest()
        + hashlib.sha256(csr).digest()
        + int64(time)
    )


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def client_assertion(key, device_uri, domain, now, jti):
    """A JWT of the device key for IssueToken (RFC 7523)."""
    claims = {
        "iss": device_uri,
        "sub": device_uri,
        "aud": f"as:{domain}",
        "iat": now,
        "exp": now + 60,
        "jti": jti,
    }
    parts = ({"typ": "JWT", "alg": "EdDSA"}, claims)
    signing_input = ".".join(base64url(json.dumps(part).encode()) for part in parts)
    return signing_input + "." + base64url(key.sign(signing_input.encode()))


# --- RFC 9420 --------------------------------------------------------------------------------------------------

MLS_VERSION = 1
SUITE = 1  # MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519
WIRE_WELCOME = 3
WIRE_KEY_PACKAGE = 5
X509_CREDENTIAL = 2
LAST_RESORT = 0x000A
POLICY = 0xF1C0


def sign_with_label(key, label, content):
    """SignWithLabel (RFC 9420 section 5.1.2)."""
    return key.sign(vector(b"MLS 1.0 " + label.encode()) + vector(content))


def leaf_node(key, public_key, encryption_key, certificate, lifetime):
    """A LeafNode of a KeyPackage (RFC 9420 section 7.2)."""
    capabilities = (
        vector(uint16(MLS_VERSION))
        + vector(uint16(SUITE))
        # Default types are not listed; the group requires the policy, openmls asks for the last-resort type.
        + vector(uint16(LAST_RESORT) + uint16(POLICY))
        + vector(b"")
        + vector(uint16(X509_CREDENTIAL))
    )
    body = (
        vector(encryption_key)
        + vector(public_key)
        + uint16(X509_CREDENTIAL)
        + vector(vector(certificate))
        + capabilities
        + uint8(1)  # leaf_node_source: key_package
        + uint64(lifetime[0])
        + uint64(lifetime[1])
        + vector(b"")
    )
    return body + vector(sign_with_label(key, "LeafNodeTBS", body))


def key_package(key, init_key, leaf, last_resort):
    """MLSMessage(KeyPackage), and the KeyPackageRef that a Welcome names it by (RFC 9420 sections 10 and 5.2)."""
    extensions = uint16(LAST_RESORT) + vector(b"") if last_resort else b""
    body = uint16(MLS_VERSION) + uint16(SUITE) + vector(init_key) + leaf + vector(extensions)
    package = body + vector(sign_with_label(key, "KeyPackageTBS", body))
    reference = hashlib.sha256(vector(b"MLS 1.0 KeyPackage Reference") + vector(package)).digest()
    return uint16(MLS_VERSION) + uint16(WIRE_KEY_PACKAGE) + package, reference


def read_welcome(message):
    """MLSMessage(Welcome) of one joiner: its KeyPackageRef, kem_output, ciphertext and the shared encrypted_group_info."""
    reader = Reader(message)
    if (reader.uint16(), reader.uint16(), reader.uint16()) != (MLS_VERSION, WIRE_WELCOME, SUITE):
        raise ValueError("not a Welcome of suite 1")
    secrets = Reader(reader.vector())
    reference, kem_output, ciphertext = secrets.vector(), secrets.vector(), secrets.vector()
    if secrets.rest:
        raise ValueError("a Welcome for more than one")
    return reference, kem_output, ciphertext, reader.vector()


def encrypt_context(label, context):
    """`info` of EncryptWithLabel (RFC 9420 section 5.1.3)."""
    return vector(b"MLS 1.0 " + label.encode()) + vector(context)
