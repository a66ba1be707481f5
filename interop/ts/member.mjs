// A member on ts-mls and the wire contract alone: gRPC, the log, CommitInfo and MLS all in Node.
import { randomBytes, verify, X509Certificate } from "node:crypto";
import {
  authenticatedData, chain, i64, messageData, personOf, policy, ratchetTree, readMessageData, toBeSigned, treeUpdate, u64, uuidText, vector,
} from "./codec.mjs";
import { Device, messageId, metadataOf, now, reasonOf } from "./contract.mjs";
import { bytes, engine, hex } from "./engine.mjs";
import { serve } from "./lines.mjs";

const KEY_PACKAGES = 10;
const RACES = 20;
const LEAVE_SECONDS = 86_400;
const COMMIT = 1, EXTERNAL_COMMIT = 2, PROPOSAL = 3, LEAVE_REQUEST = 6;
const POLICY = 0xf1c0, X509 = 2, KEY_PACKAGE = 1;

let device, suite;
const groups = new Map();

const known = (id) => {
  const found = groups.get(id);
  if (found === undefined) throw new Error("an unknown group");
  return found;
};
const idOf = (person) => person.user + person.device;
const without = (all, gone) => all.filter((person) => !gone.some((other) => idOf(other) === idOf(person)));
const roster = async (group) => {
  const { members } = await engine.roster({ group });
  return members.map(({ index, certificate }) => ({ index, certificate, ...personOf(bytes(certificate)) }));
};
const fresh = (seq, chainValue, epochSeq, texts = []) => ({
  head: seq, chain: chainValue, epochSeq, joined: seq, removed: false, leaving: [], proposals: [], own: new Map(), texts, pending: undefined,
});

const fetchTree = async (group, epochSeq) => {
  const parts = await device.list("FetchTree", { group: device.group(bytes(group)), epoch_seq: epochSeq });
  return hex(ratchetTree(parts.flatMap((part) => part.nodes)));
};

const payloadOf = async (group, entry) => {
  if (entry.body === "payload") return entry.payload;
  if (entry.body !== "payload_ref") return Buffer.alloc(0);
  const parts = await device.list("FetchPayload", { group: device.group(bytes(group)), seq: entry.seq });
  return Buffer.concat(parts.map((part) => part.chunk));
};

const read = async (group) => {
  for (;;) {
    const state = known(group);
    if (state.removed) return;
    const parts = await device.list("ReadLog", { group: device.group(bytes(group)), after_seq: state.head });
    const entries = parts.flatMap((part) => part.entries?.entries ?? []);
    if (entries.length === 0) return;
    for (const entry of entries) await apply(group, entry, await payloadOf(group, entry));
  }
};

const apply = async (group, entry, payload) => {
  const state = known(group);
  const seq = Number(entry.seq);
  if (seq !== state.head + 1) throw new Error("a hole in the log");
  const value = chain(state.chain, bytes(group), entry, payload);
  if (!value.equals(entry.chain)) throw new Error(`the chain breaks at ${seq}`);
  state.head = seq;
  state.chain = value;
  const id = entry.message_id.toString("hex");
  if (state.own.has(id)) {
    const text = state.own.get(id);
    state.own.delete(id);
    if (text !== null) state.texts.push(text);
  } else if (state.pending?.id === id) {
    state.pending = undefined;
    state.epochSeq = seq;
    state.proposals = [];
    await engine.apply_pending({ group });
    await forgetGone(group);
  } else if (entry.kind === LEAVE_REQUEST) {
    await leaveRequest(group, payload);
  } else if (Number(entry.epoch_seq) >= state.joined) {
    await process(group, entry, payload, id, seq);
  }
};

const forgetGone = async (group) => {
  const here = await roster(group);
  const state = known(group);
  state.leaving = state.leaving.filter((person) => here.some((other) => idOf(other) === idOf(person)));
};

const process = async (group, entry, payload, id, seq) => {
  const state = known(group);
  const data = readMessageData(authenticatedData(payload));
  if (data.messageId?.toString("hex") !== id) throw new Error("the entry's id is not the sender's");
  const before = entry.kind === COMMIT || entry.kind === EXTERNAL_COMMIT || entry.kind === PROPOSAL ? await roster(group) : [];
  if (entry.kind === COMMIT || entry.kind === EXTERNAL_COMMIT) {
    if (state.pending !== undefined) await engine.clear_pending({ group });
    state.pending = undefined;
  }
  const done = await engine.process({ group, message: hex(payload) });
  if (done.kind === "application") {
    state.texts.push(Buffer.from(bytes(done.text)).toString());
  } else if (done.kind === "proposal") {
    state.proposals.push({ seq, whom: before.find((member) => member.index === done.removed) });
  } else if (!done.active) {
    state.removed = true;
  } else {
    await check(group, entry, before, data);
    state.epochSeq = seq;
    state.proposals = [];
  }
};

// The CommitInfo is what the Commit did.
const check = async (group, entry, before, data) => {
  const after = await roster(group);
  let added = without(after, before).map(idOf).sort();
  let removed = without(before, after).map(idOf).sort();
  if (entry.kind === EXTERNAL_COMMIT && data.added?.length === 1 && added.length === 0) {
    // Who comes back takes the place of its old leaf.
    added = after.map(idOf).filter((id) => id === data.added[0]);
    removed = before.map(idOf).filter((id) => id === data.added[0]);
  }
  if (JSON.stringify([added, removed]) !== JSON.stringify([data.added, data.removed])) {
    throw new Error("the CommitInfo is not what the Commit does");
  }
  await forgetGone(group);
};

// chancery.delivery.v1.LeaveRequestPayload, read by hand: protobuf with fields 1 to 4.
const readLeave = (payload) => {
  const read = (buffer) => {
    const fields = {};
    let at = 0;
    const varint = () => {
      let value = 0n, shift = 0n, byte;
      do { byte = buffer[at++]; value |= BigInt(byte & 0x7f) << shift; shift += 7n; } while (byte & 0x80);
      return value;
    };
    while (at < buffer.length) {
      const tag = Number(varint());
      if (tag % 8 === 0) fields[tag >> 3] = varint();
      else { const length = Number(varint()); fields[tag >> 3] = buffer.subarray(at, at + length); at += length; }
    }
    return fields;
  };
  const fields = read(payload);
  const by = read(fields[1]);
  return { domain: by[1].toString(), id: by[2], joined: fields[2] ?? 0n, expires: fields[3] ?? 0n, signature: fields[4] };
};

const leaveContent = (group, domain, id, joined, expires) => Buffer.concat([
  vector(Buffer.from(device.domain)), vector(bytes(group)), vector(Buffer.from(domain)), id, u64(joined), i64(expires),
]);

const leaveRequest = async (group, payload) => {
  const request = readLeave(payload);
  const member = (await roster(group)).find((other) => other.device === request.id.toString("hex"));
  if (member === undefined) return;
  const content = leaveContent(group, request.domain, request.id, request.joined, request.expires);
  const key = new X509Certificate(bytes(member.certificate)).publicKey;
  const hash = key.asymmetricKeyType === "ec" ? "sha256" : null;
  if (!verify(hash, toBeSigned("chancery leave 1", content), key, request.signature)) {
    throw new Error("a leave request that its device did not sign");
  }
  known(group).leaving.push(member);
};

const claim = async (group, people) => {
  const parts = await device.list("ClaimKeyPackages", {
    claim_id: randomBytes(16), devices: people.map((person) => ({ domain: device.domain, id: Buffer.from(person.device, "hex") })), suites: [suite],
    required: { extensions: [POLICY], proposals: [], credentials: [X509] }, for_group: device.group(bytes(group)),
  });
  return parts.flatMap((part) => part.claims).map((found) => {
    if (found.outcome !== KEY_PACKAGE && found.outcome !== "CLAIM_OUTCOME_KEY_PACKAGE") throw new Error(`no KeyPackage: ${found.outcome}`);
    return hex(found.key_package);
  });
};

const bundle = (id, made) => ({
  message_id: id, commit: bytes(made.commit), welcomes: made.welcome === null ? [] : [bytes(made.welcome)], group_info: bytes(made.group_info),
  tree: treeUpdate(bytes(made.tree)),
});

// Makes a Commit on the group as it is, and keeps it.
const stage = async (group, add, remove) => {
  const state = known(group);
  const packages = add.length === 0 ? [] : await claim(group, add);
  const proposed = state.proposals.flatMap(({ whom }) => (whom === undefined ? [] : [whom]));
  const wanted = without([...remove, ...without(state.leaving, remove)], [...proposed, device.person]);
  const here = await roster(group);
  const leaves = wanted.map((person) => {
    const found = here.find((member) => idOf(member) === idOf(person));
    if (found === undefined) throw new Error("nobody to remove");
    return found.index;
  });
  const info = {
    added: add, removed: [...proposed, ...wanted], proposals: state.proposals.map(({ seq }) => seq), seenSeq: state.head, seenChain: state.chain,
  };
  const id = messageId();
  const made = await engine.commit({ group, add: packages, remove: leaves, aad: hex(messageData(device.domain, id, info)) });
  const request = { group: device.group(bytes(group)), epoch_seq: state.epochSeq, bundles: [bundle(id, made)] };
  state.pending = { id: id.toString("hex"), request };
};

// The winner's seq when the race was lost.
const lost = (error) => {
  if (reasonOf(error) !== "STALE_EPOCH") throw error;
  return Number(metadataOf(error, "winner_seq"));
};

const submit = async (group) => {
  const { pending } = known(group);
  if (pending === undefined) throw new Error("nothing was prepared");
  let outcome;
  try {
    const answer = await device.ask("delivery", "SubmitCommit", pending.request);
    outcome = { won: Number(answer.results[0].seq) };
  } catch (error) {
    outcome = { winner: lost(error) };
  }
  await read(group);
  return outcome;
};

const commit = async (group, add, remove) => {
  for (let race = 0; race < RACES; race += 1) {
    await read(group);
    await stage(group, add, remove);
    const { won } = await submit(group);
    if (won !== undefined) return won;
  }
  throw new Error("every race was lost");
};

const message = async (group, id, framed) => ({
  group: device.group(bytes(group)), message_id: id, message: bytes(framed), epoch_seq: known(group).epochSeq,
});
const frame = async (group, text) => {
  const id = messageId();
  const aad = hex(messageData(device.domain, id));
  const made = await engine.send({ group, text: hex(Buffer.from(text)), aad });
  known(group).own.set(id.toString("hex"), text);
  return message(group, id, made.message);
};
const deliver = async (request) => Number((await device.ask("delivery", "SendMessage", request)).seq);

const join = async (welcome) => {
  const group = hex(welcome.group.id);
  const tree = await fetchTree(group, welcome.epoch_seq);
  await engine.join({ group, welcome: hex(welcome.welcome), tree });
  groups.set(group, { ...fresh(Number(welcome.seq), welcome.chain, Number(welcome.epoch_seq), groups.get(group)?.texts) });
  await device.ask("delivery", "AckWelcomes", { welcomes: [{ group: welcome.group, seq: welcome.seq }] });
};

await serve({
  async enroll(request) {
    device = await Device.enroll(request);
    suite = request.suite;
    const key = device.leafKey(suite);
    await engine.start({ suite, certificate: hex(key.certificate), secret: hex(key.secret), public_key: hex(key.publicKey) });
    const packages = [];
    for (let made = 0; made <= KEY_PACKAGES; made += 1) {
      packages.push(bytes((await engine.key_package({ last_resort: made === KEY_PACKAGES })).key_package));
    }
    await device.ask("delivery", "PublishKeyPackages", { key_packages: packages });
    return { user: uuidText(device.person.user), device: uuidText(device.person.device) };
  },
  async create() {
    const id = randomBytes(32);
    const group = hex(id);
    const made = await engine.create({ group, policy: hex(policy(device.domain)) });
    await device.ask("delivery", "CreateGroup", {
      group: device.group(id), suite, group_info: bytes(made.group_info), tree: treeUpdate(bytes(made.tree)),
    });
    groups.set(group, fresh(0, Buffer.alloc(32), 0));
    return { group };
  },
  async sync({ group }) {
    const parts = await device.list("ListWelcomes", {});
    for (const welcome of parts.flatMap((part) => part.welcomes)) await join(welcome);
    await read(group);
  },
  async commit({ group, add, remove }) {
    return { seq: await commit(group, add, remove) };
  },
  async prepare({ group }) {
    await read(group);
    await stage(group, [], []);
  },
  async submit_prepared({ group }) {
    return submit(group);
  },
  async send({ group, text }) {
    if (known(group).proposals.length > 0) await commit(group, [], []);
    return { seq: await deliver(await frame(group, text)) };
  },
  async send_twice({ group, text }) {
    const request = await frame(group, text);
    return { seqs: [await deliver(request), await deliver(request)] };
  },
  async send_backwards({ group, texts }) {
    const requests = [];
    for (const text of texts) requests.push(await frame(group, text));
    const seqs = [];
    for (const request of requests.reverse()) seqs.unshift(await deliver(request));
    return { seqs };
  },
  async leave({ group }) {
    const { joined } = known(group);
    const expires = now() + LEAVE_SECONDS;
    const content = leaveContent(group, device.domain, Buffer.from(device.person.device, "hex"), joined, expires);
    const answer = await device.ask("delivery", "LeaveGroup", {
      group: device.group(bytes(group)), message_id: messageId(), joined_seq: joined, expires_at: expires,
      signature: device.leafKey(suite).signer(toBeSigned("chancery leave 1", content)),
    });
    return { seq: Number(answer.seq) };
  },
  async propose_remove({ group, whom }) {
    await read(group);
    const member = (await roster(group)).find((other) => idOf(other) === idOf(whom));
    const id = messageId();
    const aad = hex(messageData(device.domain, id));
    const made = await engine.propose_remove({ group, index: member.index, aad });
    known(group).own.set(id.toString("hex"), null);
    const seq = await deliver(await message(group, id, made.message));
    known(group).proposals.push({ seq, whom: member });
    return { seq };
  },
  async resync({ group }) {
    for (let race = 0; race < RACES; race += 1) {
      const stored = await device.ask("delivery", "GetGroupInfo", { group: device.group(bytes(group)) });
      const tree = await fetchTree(group, stored.epoch_seq);
      const id = messageId();
      const info = { added: [device.person], removed: [device.person], proposals: [], seenSeq: stored.head_seq, seenChain: stored.chain };
      const aad = hex(messageData(device.domain, id, info));
      const made = await engine.external({ group, group_info: hex(stored.group_info), tree, resync: true, aad });
      try {
        const request = { group: device.group(bytes(group)), epoch_seq: stored.epoch_seq, bundles: [bundle(id, made)] };
        const [result] = (await device.ask("delivery", "SubmitCommit", request)).results;
        groups.set(group, fresh(Number(result.seq), result.chain, Number(result.epoch_seq), groups.get(group)?.texts));
        return { seq: Number(result.seq) };
      } catch (error) {
        lost(error);
      }
    }
    throw new Error("every race was lost");
  },
  async restart() {
    await engine.restart();
  },
  async state({ group, label }) {
    const secrets = await engine.secrets({ group, label });
    const members = (await roster(group)).map((person) => ({ user: uuidText(person.user), device: uuidText(person.device) }));
    return { ...secrets, members };
  },
  async texts({ group }) {
    return { texts: known(group).texts };
  },
});
