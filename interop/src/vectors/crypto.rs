//! Lengths, messages, and what openmls' provider computes.

use anyhow::{Context as _, ensure};
use chancery_proto::{
    framing::{self, Message},
    group_info::GroupInfo,
    key_package::KeyPackage,
    tree::Tree,
    welcome::Welcome,
    wire::{Malformed, Reader, Write as _},
};
use openmls::prelude::{Ciphersuite, MlsMessageIn, tls_codec::Deserialize as _};
use openmls_rust_crypto::OpenMlsRustCrypto;
use openmls_traits::{OpenMlsProvider as _, crypto::OpenMlsCrypto, types::HpkeCiphertext};
use serde::Deserialize;
use serde_json::Value;

use super::{Hex, trees::suite};

#[derive(Deserialize)]
pub(super) struct Header {
    vlbytes_header: Hex,
    length: usize,
}

pub(super) fn deserialization(case: Header) -> anyhow::Result<()> {
    // Pages of zeros that nobody reads take no memory.
    let mut bytes = vec![0; case.vlbytes_header.0.len() + case.length];
    bytes[..case.vlbytes_header.0.len()].copy_from_slice(&case.vlbytes_header.0);
    let mut reader = Reader::new(&bytes);
    let read = reader.vector()?;
    ensure!(read.len() == case.length, "{} bytes", read.len());
    ensure!(reader.is_empty(), "bytes are left");
    let short = &bytes[..bytes.len() - 1];
    ensure!(
        Reader::new(short).vector().is_err(),
        "a vector that ends too early"
    );
    Ok(())
}

/// The key schedule's functions of RFC 9420 section 8, on openmls' provider.
struct Schedule {
    provider: OpenMlsRustCrypto,
    suite: Ciphersuite,
}

impl Schedule {
    fn new(code: u16) -> anyhow::Result<Self> {
        suite(code)?;
        let suite = Ciphersuite::try_from(code).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        Ok(Self {
            provider: OpenMlsRustCrypto::default(),
            suite,
        })
    }

    fn expand_with_label(
        &self,
        secret: &[u8],
        label: &str,
        context: &[u8],
        length: usize,
    ) -> anyhow::Result<Vec<u8>> {
        let mut info = Vec::new();
        info.put(&u16::try_from(length)?.to_be_bytes());
        info.put_vector(format!("MLS 1.0 {label}").as_bytes());
        info.put_vector(context);
        let hash = self.suite.hash_algorithm();
        let expanded = self
            .provider
            .crypto()
            .hkdf_expand(hash, secret, &info, length);
        Ok(expanded.context("hkdf_expand")?.as_slice().to_vec())
    }

    fn derive_secret(&self, secret: &[u8], label: &str) -> anyhow::Result<Vec<u8>> {
        self.expand_with_label(secret, label, &[], self.suite.hash_length())
    }

    fn extract(&self, salt: &[u8], secret: &[u8]) -> anyhow::Result<Vec<u8>> {
        let hash = self.suite.hash_algorithm();
        let extracted = self.provider.crypto().hkdf_extract(hash, salt, secret);
        Ok(extracted.context("hkdf_extract")?.as_slice().to_vec())
    }

    fn decrypt_with_label(
        &self,
        key: &[u8],
        label: &str,
        context: &[u8],
        input: &HpkeCiphertext,
    ) -> anyhow::Result<Vec<u8>> {
        let mut info = Vec::new();
        info.put_vector(format!("MLS 1.0 {label}").as_bytes());
        info.put_vector(context);
        let config = self.suite.hpke_config();
        let opened = self
            .provider
            .crypto()
            .hpke_open(config, input, key, &info, &[]);
        opened.context("hpke_open")
    }
}

#[derive(Deserialize)]
pub(super) struct Basics {
    cipher_suite: u16,
    ref_hash: RefHash,
    expand_with_label: Expand,
    derive_secret: Derive,
    derive_tree_secret: DeriveTree,
    sign_with_label: Sign,
    encrypt_with_label: Encrypt,
}

#[derive(Deserialize)]
struct RefHash {
    label: String,
    value: Hex,
    out: Hex,
}

#[derive(Deserialize)]
struct Expand {
    secret: Hex,
    label: String,
    context: Hex,
    length: usize,
    out: Hex,
}

#[derive(Deserialize)]
struct Derive {
    secret: Hex,
    label: String,
    out: Hex,
}

#[derive(Deserialize)]
struct DeriveTree {
    secret: Hex,
    label: String,
    generation: u32,
    length: usize,
    out: Hex,
}

#[derive(Deserialize)]
struct Sign {
    #[serde(rename = "pub")]
    public: Hex,
    content: Hex,
    label: String,
    signature: Hex,
}

#[derive(Deserialize)]
struct Encrypt {
    #[serde(rename = "priv")]
    private: Hex,
    label: String,
    context: Hex,
    plaintext: Hex,
    kem_output: Hex,
    ciphertext: Hex,
}

pub(super) fn basics(case: Basics) -> anyhow::Result<()> {
    let suite = suite(case.cipher_suite)?;
    let schedule = Schedule::new(case.cipher_suite)?;
    let hash = &case.ref_hash;
    ensure!(
        suite.ref_hash(&hash.label, &hash.value.0) == hash.out.0,
        "ref_hash"
    );
    let sign = &case.sign_with_label;
    let verify = |content: &[u8]| {
        suite.verify_with_label(&sign.public.0, &sign.label, content, &sign.signature.0)
    };
    ensure!(verify(&sign.content.0), "sign_with_label");
    ensure!(
        !verify(b"another content"),
        "a signature over something else"
    );
    let expand = &case.expand_with_label;
    let made = schedule.expand_with_label(
        &expand.secret.0,
        &expand.label,
        &expand.context.0,
        expand.length,
    )?;
    ensure!(made == expand.out.0, "expand_with_label");
    let derive = &case.derive_secret;
    let made = schedule.derive_secret(&derive.secret.0, &derive.label)?;
    ensure!(made == derive.out.0, "derive_secret");
    let derive = &case.derive_tree_secret;
    let generation = derive.generation.to_be_bytes();
    let made =
        schedule.expand_with_label(&derive.secret.0, &derive.label, &generation, derive.length)?;
    ensure!(made == derive.out.0, "derive_tree_secret");
    let encrypt = case.encrypt_with_label;
    let input = HpkeCiphertext {
        kem_output: encrypt.kem_output.0.into(),
        ciphertext: encrypt.ciphertext.0.into(),
    };
    let opened = schedule.decrypt_with_label(
        &encrypt.private.0,
        &encrypt.label,
        &encrypt.context.0,
        &input,
    )?;
    ensure!(opened == encrypt.plaintext.0, "encrypt_with_label");
    Ok(())
}

/// Every object of `messages` that somebody here reads.
pub(super) fn messages(case: &Value) -> anyhow::Result<()> {
    let bytes = |name: &str| -> anyhow::Result<Vec<u8>> {
        let text = case[name].as_str().with_context(|| format!("no {name}"))?;
        Ok(hex::decode(text)?)
    };
    let welcome = bytes("mls_welcome")?;
    let parsed = Welcome::parse(&welcome, welcome.len()).context("mls_welcome")?;
    for (reference, _) in &parsed.secrets {
        ensure!(
            parsed.cut(reference).is_some(),
            "a Welcome that cannot be cut"
        );
    }
    let package = bytes("mls_key_package")?;
    KeyPackage::parse(&package, package.len()).context("mls_key_package")?;
    let info = bytes("mls_group_info")?;
    match GroupInfo::parse(&info, info.len()) {
        // The contract forbids it there: the tree travels apart.
        Ok(_) | Err(Malformed("a ratchet_tree extension")) => {}
        Err(error) => return Err(error).context("mls_group_info"),
    }
    let tree = bytes("ratchet_tree")?;
    let parsed = Tree::from_ratchet_tree(&tree).context("ratchet_tree")?;
    ensure!(
        parsed.to_ratchet_tree() == tree,
        "the ratchet_tree does not come back"
    );
    let private = bytes("private_message")?;
    let parsed = framing::parse(&private, private.len()).context("private_message")?;
    ensure!(matches!(parsed, Message::Private(_)), "private_message");
    for name in [
        "mls_welcome",
        "mls_group_info",
        "mls_key_package",
        "public_message_application",
        "public_message_proposal",
        "public_message_commit",
        "private_message",
    ] {
        MlsMessageIn::tls_deserialize_exact(bytes(name)?)
            .with_context(|| format!("{name} by openmls"))?;
    }
    Ok(())
}

#[derive(Deserialize)]
pub(super) struct WelcomeCase {
    cipher_suite: u16,
    init_priv: Hex,
    signer_pub: Hex,
    key_package: Hex,
    welcome: Hex,
}

pub(super) fn welcome(case: WelcomeCase) -> anyhow::Result<()> {
    let schedule = Schedule::new(case.cipher_suite)?;
    let package = KeyPackage::parse(&case.key_package.0, case.key_package.0.len())?;
    let reference = package.reference().context("reference")?;
    let whole = Welcome::parse(&case.welcome.0, case.welcome.0.len())?;
    let cut = whole
        .cut(&reference)
        .context("no secrets for the KeyPackage")?;
    let cut = Welcome::parse(&cut, cut.len())?;
    let (_, secrets) = cut.secrets.first().context("no secrets")?;
    let mut reader = Reader::new(secrets);
    reader.vector()?;
    let input = HpkeCiphertext {
        kem_output: reader.vector()?.to_vec().into(),
        ciphertext: reader.vector()?.to_vec().into(),
    };
    let context = &cut.encrypted_group_info;
    let secrets = schedule.decrypt_with_label(&case.init_priv.0, "Welcome", context, &input)?;
    let joiner_secret = Reader::new(&secrets).vector()?.to_vec();
    // RFC 9420 section 8: no PSK is a secret of zeros.
    let no_psk = vec![0; schedule.suite.hash_length()];
    let member_secret = schedule.extract(&joiner_secret, &no_psk)?;
    let welcome_secret = schedule.derive_secret(&member_secret, "welcome")?;
    let aead = schedule.suite.aead_algorithm();
    let key = schedule.expand_with_label(&welcome_secret, "key", &[], aead.key_size())?;
    let nonce = schedule.expand_with_label(&welcome_secret, "nonce", &[], aead.nonce_size())?;
    let crypto = schedule.provider.crypto();
    let body = crypto
        .aead_decrypt(aead, &key, context, &nonce, &[])
        .context("the GroupInfo")?;
    let message = [&[0, 1, 0, 4][..], &body].concat();
    let info = GroupInfo::parse(&message, message.len())?;
    ensure!(info.suite == case.cipher_suite, "suite");
    ensure!(
        info.verify(&case.signer_pub.0) == Some(true),
        "signature of the GroupInfo"
    );
    let epoch_secret = schedule.expand_with_label(
        &member_secret,
        "epoch",
        &info.group_context,
        schedule.suite.hash_length(),
    )?;
    let confirmation_key = schedule.derive_secret(&epoch_secret, "confirm")?;
    let confirmed = confirmed_transcript_hash(&info.group_context)?;
    let hash = schedule.suite.hash_algorithm();
    let tag = crypto
        .hmac(hash, &confirmation_key, &confirmed)
        .context("hmac")?;
    ensure!(tag.as_slice() == info.confirmation_tag, "confirmation_tag");
    Ok(())
}

/// The field of a GroupContext (RFC 9420 section 8.1).
fn confirmed_transcript_hash(context: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut reader = Reader::new(context);
    let (_version, _suite) = (reader.u16()?, reader.u16()?);
    reader.vector()?;
    reader.u64()?;
    reader.vector()?;
    Ok(reader.vector()?.to_vec())
}
