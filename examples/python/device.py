"""A device of Chancery in Python: it enrolls, publishes KeyPackages, and waits until somebody adds it to a group.

    python device.py --auth 127.0.0.1:7401 --delivery 127.0.0.1:7402 --invitation CODE

It prints one JSON object a line: {"event":"enrolled",…}, {"event":"published",…}, {"event":"welcome",…}. To join the group
that the Welcome leads to takes an MLS library; what is here shows everything before that, and opens the Welcome's secrets.
"""

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
import uuid

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hpke, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, x25519
from grpc_tools import protoc

import layout

KEY_PACKAGE_SECONDS = 30 * 24 * 3600


def contract(folder):
    """Compiles proto/ into `folder`; the messages and stubs of both services."""
    proto = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "proto")
    names = ["common", "auth", "delivery"]
    files = [f"chancery/{name}/v1/{name}.proto" for name in names]
    arguments = ["protoc", f"-I{proto}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
    if protoc.main(arguments + files) != 0:
        raise SystemExit("the contract does not compile")
    sys.path.insert(0, folder)
    modules = ["auth.v1.auth_pb2", "auth.v1.auth_pb2_grpc", "delivery.v1.delivery_pb2", "delivery.v1.delivery_pb2_grpc"]
    return [importlib.import_module("chancery." + module) for module in modules]


def raw(public_key):
    return public_key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def say(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)


class Device:
    """One device: its key, its certificate, and the private keys of its KeyPackages."""

    def __init__(self, options, folder):
        self.auth, auth_stubs, self.delivery, delivery_stubs = contract(folder)
        self.auth_stub = auth_stubs.AuthServiceStub(grpc.insecure_channel(options.auth))
        self.delivery_stub = delivery_stubs.DeliveryServiceStub(grpc.insecure_channel(options.delivery))
        self.key = ed25519.Ed25519PrivateKey.generate()
        self.init_keys = {}

    def enroll(self, invitation):
        info = self.auth_stub.GetServiceInfo(self.auth.GetServiceInfoRequest())
        self.domain = info.domain
        # Of a signing request only the key counts.
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(self.key, None)
        csr = request.public_bytes(serialization.Encoding.DER)
        now = int(time.time())
        proof = layout.enroll_proof(info.domain, invitation, csr, now)
        credential = self.auth.Credential(
            scheme=0x0807,
            csr=csr,
            proof=self.key.sign(layout.signed_content("chancery enroll 1", proof)),
            proof_time=now,
        )
        answer = self.auth_stub.Enroll(
            self.auth.EnrollRequest(invitation=invitation, credentials=[credential], device_name="python")
        )
        self.certificate = answer.certificates[0]
        self.uri = f"mimi://{answer.device.domain}/d/{uuid.UUID(bytes=answer.device.id)}"
        say("enrolled", device=self.uri)

    def authorization(self, audience):
        """The header of a call; `audience` is `as` or `ds`, each with the service's domain behind it."""
        assertion = layout.client_assertion(self.key, self.uri, self.domain, int(time.time()), str(uuid.uuid4()))
        request = self.auth.IssueTokenRequest(client_assertion=assertion, audience=audience)
        return [("authorization", "Bearer " + self.auth_stub.IssueToken(request).access_token)]

    def key_package(self, last_resort):
        """A KeyPackage with keys of its own; the private init key is kept under its KeyPackageRef."""
        encryption_key, init_key = x25519.X25519PrivateKey.generate(), x25519.X25519PrivateKey.generate()
        certificate = x509.load_der_x509_certificate(self.certificate)
        now = int(time.time())
        end = min(now + KEY_PACKAGE_SECONDS, int(certificate.not_valid_after_utc.timestamp()))
        leaf = layout.leaf_node(
            self.key,
            raw(self.key.public_key()),
            raw(encryption_key.public_key()),
            self.certificate,
            (now - 60, end),
        )
        package, reference = layout.key_package(self.key, raw(init_key.public_key()), leaf, last_resort)
        self.init_keys[reference] = init_key
        return package

    def publish(self, one_time):
        service = self.delivery_stub.GetServiceInfo(self.delivery.GetServiceInfoRequest())
        self.header = self.authorization(f"ds:{service.domain}")
        packages = [self.key_package(False) for _ in range(one_time)] + [self.key_package(True)]
        request = self.delivery.PublishKeyPackagesRequest(key_packages=packages)
        stock = self.delivery_stub.PublishKeyPackages(request, metadata=self.header).stock
        say("published", one_time=stock[0].one_time, last_resort=stock[0].last_resort)

    def await_welcome(self, seconds):
        """Asks for Welcomes until one is there, and opens its secrets with the init key that it names."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pages = self.delivery_stub.ListWelcomes(self.delivery.ListWelcomesRequest(), metadata=self.header)
            for welcome in (welcome for page in pages for welcome in page.welcomes):
                return self.open(welcome)
            time.sleep(0.2)
        raise SystemExit("nobody added this device")

    def open(self, welcome):
        reference, kem_output, ciphertext, group_info = layout.read_welcome(welcome.welcome)
        suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_128_GCM)
        info = layout.encrypt_context("Welcome", group_info)
        secrets = layout.Reader(suite.decrypt(kem_output + ciphertext, self.init_keys[reference], info))
        joiner_secret = secrets.vector()
        say(
            "welcome",
            group=f"{welcome.group.domain}/{welcome.group.id.hex()}",
            seq=welcome.seq,
            joiner_secret_bytes=len(joiner_secret),
        )


def main():
    parser = argparse.ArgumentParser(description="A device that enrolls, publishes KeyPackages and waits for a Welcome.")
    parser.add_argument("--auth", required=True, metavar="HOST:PORT", help="the Authentication Service, plaintext")
    parser.add_argument("--delivery", required=True, metavar="HOST:PORT", help="the Delivery Service, plaintext")
    parser.add_argument("--invitation", required=True, metavar="CODE")
    parser.add_argument("--key-packages", type=int, default=2, metavar="N", help="one-time KeyPackages (default 2)")
    parser.add_argument("--seconds", type=float, default=60, help="longest wait for a Welcome (default 60)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        device = Device(options, folder)
        device.enroll(options.invitation)
        device.publish(options.key_packages)
        device.await_welcome(options.seconds)


if __name__ == "__main__":
    main()
