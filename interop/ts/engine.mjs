// An MLS engine on ts-mls for one device. Bytes are hex.
import {
  acceptAll, createApplicationMessage, createCommit, createGroup, createGroupInfoWithExternalPub, createProposal, decodeGroupState, decodeMlsMessage, defaultKeyRetentionConfig,
  defaultLifetimeConfig, defaultPaddingConfig, defaultKeyPackageEqualityConfig, emptyPskIndex, encodeGroupState, encodeMlsMessage,
  encodeRequiredCapabilities, generateKeyPackageWithKey, getCiphersuiteFromName, getCiphersuiteImpl, joinGroup, joinGroupExternal, mlsExporter,
  processMessage,
} from "ts-mls";
import { Reader, vector } from "./codec.mjs";
import { createGroupInfo } from "ts-mls/createCommit.js";
import { makeKeyPackageRef } from "ts-mls/keyPackage.js";
import { decodeRatchetTree, encodeRatchetTree } from "ts-mls/ratchetTree.js";

const POLICY = 0xf1c0;
const LAST_RESORT = 0x000a;
const SUITES = {
  1: "MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519",
  2: "MLS_128_DHKEMP256_AES128GCM_SHA256_P256",
  3: "MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519",
};

export const hex = (bytes) => Buffer.from(bytes).toString("hex");
export const bytes = (text) => new Uint8Array(Buffer.from(text, "hex"));
const same = (a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)) === 0;

const config = {
  keyRetentionConfig: { ...defaultKeyRetentionConfig, retainKeysForEpochs: 2 },
  lifetimeConfig: defaultLifetimeConfig,
  keyPackageEqualityConfig: {
    ...defaultKeyPackageEqualityConfig,
    // A device that comes back has another KeyPackage and the same key.
    compareKeyPackageToLeafNode: (keyPackage, leaf) => same(keyPackage.leafNode.signaturePublicKey, leaf.signaturePublicKey),
  },
  paddingConfig: defaultPaddingConfig,
  // The caller looks at certificates.
  authService: { validateCredential: async (credential) => credential.credentialType === "x509" && credential.certificates.length === 1 },
};

let suite, cs, identity;
const packages = [];
const groups = new Map();

const message = (wireformat, field, value) => encodeMlsMessage({ version: "mls10", wireformat, [field]: value });
const decoded = (text) => {
  const found = decodeMlsMessage(bytes(text), 0);
  if (found === undefined) throw new Error("not an MLSMessage");
  return found[0];
};
const group = (id) => {
  const found = groups.get(id);
  if (found === undefined) throw new Error("an unknown group");
  return found;
};

// The library leaves the length out of external_pub (RFC 9420 section 12.4.3.2), so the GroupInfo is put together here.
const groupInfo = async (state) => {
  const pair = await cs.hpke.deriveKeyPair(state.keySchedule.externalSecret);
  const key = await cs.hpke.exportPublicKey(pair.publicKey);
  const extension = { extensionType: "external_pub", extensionData: new Uint8Array(vector(key)) };
  return createGroupInfo(state.groupContext, state.confirmationTag, state, [extension], cs);
};

const epoch = async (state) => ({
  group_info: hex(message("mls_group_info", "groupInfo", await groupInfo(state))),
  tree: hex(encodeRatchetTree(state.ratchetTree)),
});

// RFC 9420 section 13.5: values that everybody must pass over.
const GREASE = 0x0a0a;

const keyPackage = async (lastResort, grease = false) => {
  const now = BigInt(Math.floor(Date.now() / 1000));
  const capabilities = {
    versions: ["mls10"], ciphersuites: [SUITES[suite]], extensions: [POLICY, LAST_RESORT, ...(grease ? [GREASE] : [])],
    proposals: grease ? [GREASE] : [], credentials: ["x509"],
  };
  const extensions = lastResort ? [{ extensionType: LAST_RESORT, extensionData: new Uint8Array() }] : [];
  return generateKeyPackageWithKey(
    { credentialType: "x509", certificates: [identity.certificate] }, capabilities, { notBefore: now - 3600n, notAfter: now + 30n * 86400n },
    extensions, { signKey: identity.secret, publicKey: identity.publicKey }, cs,
    grease ? [{ extensionType: GREASE, extensionData: new Uint8Array([1, 2, 3]) }] : [],
  );
};

export const engine = {
  async start(request) {
    suite = request.suite;
    cs = await getCiphersuiteImpl(getCiphersuiteFromName(SUITES[suite]));
    identity = { certificate: bytes(request.certificate), secret: bytes(request.secret), publicKey: bytes(request.public_key) };
  },
  async key_package(request) {
    const made = await keyPackage(request.last_resort, request.grease);
    const reference = hex(await makeKeyPackageRef(made.publicPackage, cs.hash));
    packages.push({ ...made, reference, lastResort: request.last_resort });
    return { key_package: hex(message("mls_key_package", "keyPackage", made.publicPackage)) };
  },
  async create(request) {
    const made = await keyPackage(false);
    const required = encodeRequiredCapabilities({ extensionTypes: [POLICY], proposalTypes: [], credentialTypes: ["x509"] });
    const extensions = [
      { extensionType: "required_capabilities", extensionData: required },
      { extensionType: POLICY, extensionData: bytes(request.policy) },
    ];
    const state = await createGroup(bytes(request.group), made.publicPackage, made.privatePackage, extensions, cs, config);
    groups.set(request.group, { state });
    return epoch(state);
  },
  async join(request) {
    const { welcome } = decoded(request.welcome);
    const reference = hex(welcome.secrets[0].newMember);
    const at = packages.findIndex((known) => known.reference === reference);
    if (at < 0) throw new Error("a Welcome for another KeyPackage");
    const known = packages[at];
    const [tree] = decodeRatchetTree(bytes(request.tree), 0);
    const state = await joinGroup(welcome, known.publicPackage, known.privatePackage, emptyPskIndex, cs, tree, undefined, config);
    if (!known.lastResort) packages.splice(at, 1);
    groups.set(request.group, { state });
  },
  async roster(request) {
    const { state } = group(request.group);
    const members = [];
    state.ratchetTree.forEach((node, index) => {
      if (node !== undefined && node.nodeType === "leaf") {
        members.push({ index: index / 2, certificate: hex(node.leaf.credential.certificates[0]) });
      }
    });
    return { members };
  },
  async commit(request) {
    const known = group(request.group);
    const extraProposals = [
      ...request.add.map((text) => ({ proposalType: "add", add: { keyPackage: decoded(text).keyPackage } })),
      ...request.remove.map((removed) => ({ proposalType: "remove", remove: { removed } })),
    ];
    const made = await createCommit(
      { state: known.state, cipherSuite: cs }, { extraProposals, authenticatedData: bytes(request.aad), ratchetTreeExtension: false },
    );
    known.pending = made.newState;
    return {
      commit: hex(encodeMlsMessage(made.commit)),
      welcome: made.welcome === undefined ? null : hex(message("mls_welcome", "welcome", made.welcome)),
      ...(await epoch(made.newState)),
    };
  },
  async apply_pending(request) {
    const known = group(request.group);
    known.state = known.pending;
    known.pending = undefined;
  },
  async clear_pending(request) {
    group(request.group).pending = undefined;
  },
  async process(request) {
    const known = group(request.group);
    let removed = null;
    let kind = "commit";
    const callback = (incoming) => {
      kind = incoming.kind;
      if (kind === "proposal" && incoming.proposal.proposal.proposalType === "remove") {
        removed = incoming.proposal.proposal.remove.removed;
      }
      return acceptAll(incoming);
    };
    const done = await processMessage(decoded(request.message), known.state, emptyPskIndex, callback, cs);
    known.state = done.newState;
    if (done.kind === "applicationMessage") return { kind: "application", text: hex(done.message) };
    return { kind, removed, active: done.newState.groupActiveState.kind === "active" };
  },
  async send(request) {
    const known = group(request.group);
    const made = await createApplicationMessage(known.state, bytes(request.text), cs, bytes(request.aad));
    known.state = made.newState;
    return { message: hex(message("mls_private_message", "privateMessage", made.privateMessage)) };
  },
  async propose_remove(request) {
    const known = group(request.group);
    const proposal = { proposalType: "remove", remove: { removed: request.index } };
    const made = await createProposal(known.state, false, proposal, cs, bytes(request.aad));
    known.state = made.newState;
    return { message: hex(encodeMlsMessage(made.message)) };
  },
  async external(request) {
    const made = await keyPackage(false);
    const [tree] = decodeRatchetTree(bytes(request.tree), 0);
    // The library reads external_pub without its length: taken off here, after the signature covered it.
    const withLength = (key) => key.length === 33 || key.length === 67;
    const bare = (key) => (withLength(key) ? new Uint8Array(new Reader(key).vector()) : key);
    const hpke = { ...cs.hpke, importPublicKey: (key) => cs.hpke.importPublicKey(bare(key)) };
    const joined = await joinGroupExternal(
      decoded(request.group_info).groupInfo, made.publicPackage, made.privatePackage, request.resync, { ...cs, hpke }, tree, config,
      bytes(request.aad),
    );
    groups.set(request.group, { state: joined.newState });
    return {
      commit: hex(message("mls_public_message", "publicMessage", joined.publicMessage)), welcome: null, ...(await epoch(joined.newState)),
    };
  },
  async secrets(request) {
    const { state } = group(request.group);
    const exporter = await mlsExporter(state.keySchedule.exporterSecret, request.label, new Uint8Array(), 32, cs);
    return { epoch: Number(state.groupContext.epoch), authenticator: hex(state.keySchedule.epochAuthenticator), exporter: hex(exporter) };
  },
  // Whether the library still writes external_pub without its length: what is worked around above.
  async external_pub_has_length(request) {
    const info = await createGroupInfoWithExternalPub(group(request.group).state, [], cs);
    const found = info.extensions.find((extension) => extension.extensionType === "external_pub");
    return { has_length: found.extensionData.length === 33 };
  },
  async restart() {
    for (const known of groups.values()) {
      const found = decodeGroupState(encodeGroupState(known.state), 0);
      if (found === undefined) throw new Error("a group's state does not come back");
      known.state = { ...found[0], clientConfig: config };
    }
  },
};
