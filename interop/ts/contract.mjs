// A device on the wire contract: gRPC from the repository's .proto files, enrolment, tokens.
import { createHash, generateKeyPairSync, randomUUID, sign } from "node:crypto";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";
import { i64, personOf, sha256, signingRequest, toBeSigned, vector } from "./codec.mjs";

const PROTO = fileURLToPath(new URL("../../proto", import.meta.url));
const MAX_BYTES = 64 << 20;

const packages = loader.loadSync(["chancery/auth/v1/auth.proto", "chancery/delivery/v1/delivery.proto"], {
  includeDirs: [PROTO], keepCase: true, longs: String, defaults: true, oneofs: true,
});
const { chancery } = grpc.loadPackageDefinition(packages);

const now = () => Math.floor(Date.now() / 1000);
const base64url = (value) => Buffer.from(value).toString("base64url");

// The refusal's reason: google.rpc.ErrorInfo, found by its domain; enough for a client that looks for one reason.
export const reasonOf = (error) => {
  const details = error.metadata?.get("grpc-status-details-bin")?.[0];
  const text = details === undefined ? "" : details.toString("latin1");
  return text.includes("chancery") ? (text.match(/[A-Z]{3,}(_[A-Z]+)*/)?.[0] ?? "") : "";
};
export const metadataOf = (error, key) => {
  const details = error.metadata?.get("grpc-status-details-bin")?.[0]?.toString("latin1") ?? "";
  // map<string, string>: key, then field 2 with a short length.
  const at = details.indexOf(key);
  if (at < 0) return undefined;
  const value = at + key.length;
  return details.slice(value + 2, value + 2 + details.charCodeAt(value + 1));
};

// A key with its signing request. RFC 8410 and RFC 5915 say where the secret stands in PKCS#8; a JWK names it.
const newKey = (type) => {
  const { publicKey, privateKey } = generateKeyPairSync(type, type === "ec" ? { namedCurve: "P-256" } : {});
  const spki = publicKey.export({ type: "spki", format: "der" });
  const secret = Buffer.from(privateKey.export({ format: "jwk" }).d, "base64url");
  const signer = (bytes) => sign(type === "ec" ? "sha256" : null, bytes, privateKey);
  return {
    scheme: type === "ec" ? 0x0403 : 0x0807, secret, signer, publicKey: spki.subarray(type === "ec" ? -65 : -32),
    csr: signingRequest(spki, type, signer),
  };
};

export class Device {
  static async enroll({ auth_url, delivery_url, code, handle }) {
    const device = new Device();
    const address = (url) => new URL(url).host;
    const insecure = grpc.credentials.createInsecure();
    const options = { "grpc.max_receive_message_length": MAX_BYTES, "grpc.max_send_message_length": MAX_BYTES };
    device.auth = new chancery.auth.v1.AuthService(address(auth_url), insecure, options);
    device.delivery = new chancery.delivery.v1.DeliveryService(address(delivery_url), insecure, options);
    device.metadata = new grpc.Metadata();
    const { domain, credential_schemes: schemes } = await device.ask("auth", "GetServiceInfo", {});
    device.domain = domain;
    device.keys = [newKey("ed25519"), newKey("ec")].filter(({ scheme }) => schemes.includes(scheme));
    const time = now();
    const enrolled = await device.ask("auth", "Enroll", {
      invitation: code, device_name: handle,
      credentials: device.keys.map(({ scheme, csr, signer }) => {
        const content = Buffer.concat([vector(Buffer.from(domain)), sha256(code), sha256(csr), i64(time)]);
        return { scheme, csr, proof: signer(toBeSigned("chancery enroll 1", content)), proof_time: time };
      }),
    });
    enrolled.certificates.forEach((certificate, index) => { device.keys[index].certificate = certificate; });
    device.person = personOf(enrolled.certificates[0]);
    await device.refresh();
    return device;
  }

  // The key of its leaves in groups of a suite.
  leafKey(suite) {
    return this.keys[suite === 2 ? 1 : 0];
  }

  async refresh() {
    const { uri } = this.person;
    const claims = { iss: uri, sub: uri, aud: `as:${this.domain}`, iat: now(), exp: now() + 60, jti: randomUUID() };
    const signed = `${base64url(JSON.stringify({ typ: "JWT", alg: "EdDSA" }))}.${base64url(JSON.stringify(claims))}`;
    const assertion = `${signed}.${base64url(this.keys[0].signer(Buffer.from(signed)))}`;
    const { access_token } = await this.ask("auth", "IssueToken", { client_assertion: assertion, audience: `ds:${this.domain}` });
    this.metadata.set("authorization", `Bearer ${access_token}`);
  }

  ask(service, method, request) {
    return new Promise((resolve, reject) => {
      const done = (error, answer) => (error ? reject(error) : resolve(answer));
      this[service][method](request, this.metadata ?? new grpc.Metadata(), done);
    });
  }

  // Every part of a streamed answer.
  list(method, request) {
    return new Promise((resolve, reject) => {
      const parts = [];
      const stream = this.delivery[method](request, this.metadata);
      stream.on("data", (part) => parts.push(part));
      stream.on("error", reject);
      stream.on("end", () => resolve(parts));
    });
  }

  group(id) {
    return { domain: this.domain, id };
  }
}

export const messageId = () => createHash("sha256").update(randomUUID()).digest().subarray(0, 16);
export { now };
