// The byte formats of docs/protocol.md, as far as a member needs them.
import { createHash, X509Certificate } from "node:crypto";

export const sha256 = (...parts) => {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest();
};

export const u16 = (value) => { const bytes = Buffer.alloc(2); bytes.writeUInt16BE(value); return bytes; };
export const u32 = (value) => { const bytes = Buffer.alloc(4); bytes.writeUInt32BE(value); return bytes; };
export const u64 = (value) => { const bytes = Buffer.alloc(8); bytes.writeBigUInt64BE(BigInt(value)); return bytes; };
export const i64 = (value) => { const bytes = Buffer.alloc(8); bytes.writeBigInt64BE(BigInt(value)); return bytes; };

// RFC 9420 section 2.1.2: the length in 1, 2 or 4 bytes.
export const vector = (...parts) => {
  const content = Buffer.concat(parts.map((part) => Buffer.from(part)));
  const length = content.length;
  if (length < 0x40) return Buffer.concat([Buffer.from([length]), content]);
  if (length < 0x4000) return Buffer.concat([u16(length | 0x4000), content]);
  return Buffer.concat([u32((length | 0x80000000) >>> 0), content]);
};

export class Reader {
  constructor(bytes) { this.bytes = Buffer.from(bytes); this.at = 0; }
  take(count) {
    if (this.at + count > this.bytes.length) throw new Error("cut short");
    this.at += count;
    return this.bytes.subarray(this.at - count, this.at);
  }
  u8() { return this.take(1).readUInt8(); }
  u16() { return this.take(2).readUInt16BE(); }
  u32() { return this.take(4).readUInt32BE(); }
  u64() { return this.take(8).readBigUInt64BE(); }
  vector() {
    const kind = this.bytes[this.at] >> 6;
    if (kind === 0) return this.take(this.u8());
    if (kind === 1) return this.take(this.u16() & 0x3fff);
    if (kind === 2) return this.take(this.u32() & 0x3fffffff);
    throw new Error("a length of 8 bytes");
  }
  get done() { return this.at === this.bytes.length; }
}

const COMMIT_INFO = 0x8c01;
const MESSAGE_ID = 0x8c02;

// Sorted by domain, then user and device: one domain here.
const members = (domain, people) => {
  if (people.length === 0) return vector();
  const ids = people.map((person) => Buffer.from(person.user + person.device, "hex")).sort(Buffer.compare);
  return vector(vector(Buffer.from(domain)), vector(...ids));
};

export const messageData = (domain, messageId, info) => {
  const items = [];
  if (info !== undefined) {
    const encoded = Buffer.concat([
      Buffer.from([1]), members(domain, info.added), members(domain, info.removed), vector(), vector(...info.proposals.map(u64)),
      u64(info.seenSeq), info.seenChain, vector(),
    ]);
    items.push(u16(COMMIT_INFO), vector(encoded));
  }
  items.push(u16(MESSAGE_ID), vector(messageId));
  return vector(...items);
};

// Its message id, and the added and removed devices if it is of a Commit, as hex of user and device.
export const readMessageData = (bytes) => {
  const items = new Reader(new Reader(bytes).vector());
  const data = {};
  while (!items.done) {
    const component = items.u16();
    const content = items.vector();
    if (component === MESSAGE_ID) data.messageId = Buffer.from(content);
    if (component === COMMIT_INFO) {
      const reader = new Reader(content);
      if (reader.u8() !== 1) throw new Error("another version of CommitInfo");
      const people = () => {
        const domains = new Reader(reader.vector());
        const ids = [];
        while (!domains.done) {
          domains.vector();
          const list = new Reader(domains.vector());
          while (!list.done) ids.push(list.take(32).toString("hex"));
        }
        return ids.sort();
      };
      data.added = people();
      data.removed = people();
    }
  }
  return data;
};

// What an MLSMessage says of itself in clear (RFC 9420 section 6).
export const authenticatedData = (message) => {
  const reader = new Reader(message);
  if (reader.u16() !== 1) throw new Error("another version of MLS");
  const format = reader.u16();
  reader.vector();
  reader.u64();
  if (format === 2) {
    reader.u8();
    return reader.vector();
  }
  if (format === 1 && reader.u8() === 4) return reader.vector();
  throw new Error("neither a PrivateMessage nor an external Commit");
};

export const chain = (previous, group, entry, payload) => {
  const fields = [
    Buffer.from("chancery log"), previous, group, u64(entry.seq), u64(entry.epoch_seq), u64(entry.kind), entry.message_id,
    i64(entry.accepted_at_micros), sha256(payload),
  ];
  return sha256(...fields.flatMap((field) => [u32(field.length), field]));
};

// The end of one optional<Node> (RFC 9420 sections 7.1 and 7.2).
const skipNode = (reader) => {
  if (reader.u8() === 0) return false;
  if (reader.u8() === 2) {
    reader.vector(); reader.vector(); reader.vector();
    return true;
  }
  reader.vector(); reader.vector();
  if (reader.u16() === 1) reader.vector(); else reader.vector();
  for (let list = 0; list < 5; list += 1) reader.vector();
  const source = reader.u8();
  if (source === 1) reader.take(16);
  if (source === 3) reader.vector();
  reader.vector(); reader.vector();
  return true;
};

// A ratchet tree as nodes by index, and how many leaves there is room for.
export const treeUpdate = (ratchetTree) => {
  const reader = new Reader(new Reader(ratchetTree).vector());
  const nodes = [];
  let index = 0;
  for (; !reader.done; index += 1) {
    const from = reader.at;
    if (skipNode(reader)) nodes.push({ index, node: reader.bytes.subarray(from, reader.at) });
  }
  let width = 1;
  while (2 * width - 1 < index) width *= 2;
  return { full: true, tree_width: width, nodes };
};

export const ratchetTree = (parts) => {
  const nodes = new Map(parts.map(({ index, node }) => [index, node]));
  const last = Math.max(...nodes.keys());
  return vector(...Array.from({ length: last + 1 }, (_, index) => nodes.get(index) ?? Buffer.from([0])));
};

export const policy = (domain) => Buffer.concat([Buffer.from([1]), vector(Buffer.from(domain)), Buffer.from([1, 1]), vector()]);

export const toBeSigned = (label, content) => Buffer.concat([vector(Buffer.from(label)), vector(content)]);

// Who a leaf certificate names: `mimi://<domain>/u/<uuid>` and `mimi://<domain>/d/<uuid>`.
export const personOf = (der) => {
  const names = new X509Certificate(der).subjectAltName ?? "";
  const id = (kind) => {
    const found = names.match(new RegExp(`URI:mimi://([^/,]+)/${kind}/([0-9a-f-]{36})`));
    if (found === null) throw new Error(`no ${kind} in ${names}`);
    return { domain: found[1], hex: found[2].replaceAll("-", ""), uri: `mimi://${found[1]}/${kind}/${found[2]}` };
  };
  const [user, device] = [id("u"), id("d")];
  return { domain: device.domain, user: user.hex, device: device.hex, uri: device.uri };
};

export const uuidText = (hex) => hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");

// PKCS#10 with a key and nothing else: only the key counts.
export const signingRequest = (spki, type, sign) => {
  const der = (tag, ...parts) => {
    const content = Buffer.concat(parts);
    if (content.length > 127) return Buffer.concat([Buffer.from([tag, 0x81, content.length]), content]);
    return Buffer.concat([Buffer.from([tag, content.length]), content]);
  };
  const info = der(0x30, der(0x02, Buffer.from([0])), der(0x30), spki, der(0xa0));
  // Ed25519; ecdsa-with-SHA256.
  const algorithm = type === "ec" ? [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02] : [0x2b, 0x65, 0x70];
  return der(0x30, info, der(0x30, der(0x06, Buffer.from(algorithm))), der(0x03, Buffer.from([0]), sign(info)));
};
