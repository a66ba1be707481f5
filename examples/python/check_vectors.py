"""Holds layout.py against docs/vectors: what it writes is what the examples say."""

import json
import os
import sys

from cryptography.hazmat.primitives.asymmetric import ed25519

import layout

SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "docs", "vectors")


def vectors(name):
    with open(os.path.join(FOLDER, name), encoding="utf-8") as file:
        return json.load(file)["vectors"]


def derived(vector, name):
    return next(item["value"] for item in vector["derived"] if item["name"] == name)


def main():
    checked = 0
    key = ed25519.Ed25519PrivateKey.from_private_bytes(SEED)
    for name in sorted(os.listdir(FOLDER)):
        for vector in vectors(name):
            assert "".join(field["bytes"] for field in vector["fields"]) == vector["bytes"], vector["name"]
            checked += 1
    for vector in vectors("signed.json"):
        content = bytes.fromhex("".join(f["bytes"] for f in vector["fields"] if f["name"].startswith("content / ")))
        assert layout.signed_content(vector["name"], content).hex() == vector["bytes"], vector["name"]
        key.public_key().verify(bytes.fromhex(derived(vector, "signature")), bytes.fromhex(vector["bytes"]))
    proof = layout.enroll_proof("interior.example", "0123456789abcdef", b"csr", 1795625319)
    enroll = vectors("signed.json")[0]
    assert layout.signed_content("chancery enroll 1", proof).hex() == enroll["bytes"]
    welcome = vectors("welcome.json")[1]
    assert layout.read_welcome(bytes.fromhex(welcome["bytes"])) == (b"two", b"kem", b"ciphertext", b"shared")
    print(json.dumps({"vectors": checked, "failed": 0}))


if __name__ == "__main__":
    sys.exit(main())
