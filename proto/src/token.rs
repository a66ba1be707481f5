//! Access tokens (RFC 9068) and client assertions (RFC 7523): EdDSA JWTs, signed and verified with ring.
//!
//! The time is an argument everywhere; `jsonwebtoken`'s own clock is switched off.

use std::sync::Once;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation,
    crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils},
    errors::{Error, ErrorKind},
};
use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use signature::{Signer, Verifier};

/// `typ` of an access token (RFC 9068 section 2.1).
pub const ACCESS_TOKEN_TYPE: &str = "at+jwt";

/// Claims of an access token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessClaims {
    /// Domain of the issuing Authentication Service.
    pub iss: String,
    /// The user's UUID.
    pub sub: String,
    /// The device's UUID.
    pub device: String,
    /// `as:<domain>` or `ds:<domain>`.
    pub aud: String,
    /// Unix seconds.
    pub iat: i64,
    /// Unix seconds.
    pub exp: i64,
    /// Unique.
    pub jti: String,
    /// The key that the device proved.
    pub cnf: Confirmation,
}

/// RFC 7800 confirmation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// RFC 7638 thumbprint of the device key.
    pub jkt: String,
}

/// Why a token is no good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a JWT of the expected type and algorithm, or its signature does not verify.
    #[error("the token is not valid")]
    Invalid,
    /// Its time is over.
    #[error("the token expired")]
    Expired,
}

/// `typ` of a client assertion (RFC 7523).
pub const ASSERTION_TYPE: &str = "JWT";

/// What a device says when it asks for an access token (RFC 7523 section 3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssertionClaims {
    /// The device's URI.
    pub iss: String,
    /// The same.
    pub sub: String,
    /// `as:<domain>`.
    pub aud: String,
    /// Unix seconds.
    pub iat: i64,
    /// Unix seconds; at most 60 after `iat`.
    pub exp: i64,
    /// Never used twice.
    pub jti: String,
}

/// The claims of a token before anything is verified: only to find the key that it must verify with.
///
/// # Errors
/// [`TokenError::Invalid`].
pub fn unverified<T: DeserializeOwned>(token: &str) -> Result<T, TokenError> {
    let claims = token.split('.').nth(1).ok_or(TokenError::Invalid)?;
    let claims = URL_SAFE_NO_PAD
        .decode(claims)
        .map_err(|_| TokenError::Invalid)?;
    serde_json::from_slice(&claims).map_err(|_| TokenError::Invalid)
}

/// RFC 7638 thumbprint of a raw Ed25519 key, as in `cnf.jkt`.
pub fn thumbprint(key: &[u8]) -> String {
    let x = URL_SAFE_NO_PAD.encode(key);
    let jwk = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
    URL_SAFE_NO_PAD.encode(Sha256::digest(jwk))
}

/// The bearer token of a request; `None` when there is none, or one longer than any that is issued.
pub fn bearer(metadata: &tonic::metadata::MetadataMap) -> Option<&str> {
    const TOKEN_BYTES: usize = 4096;
    metadata
        .get("authorization")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .filter(|token| token.len() <= TOKEN_BYTES)
}

struct EdSigner(Ed25519KeyPair);

impl Signer<Vec<u8>> for EdSigner {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        Ok(self.0.sign(message).as_ref().to_vec())
    }
}

impl JwtSigner for EdSigner {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}

struct EdVerifier(UnparsedPublicKey<Vec<u8>>);

impl Verifier<Vec<u8>> for EdVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        self.0
            .verify(message, signature)
            .map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for EdVerifier {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}

fn signer(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>, Error> {
    if *algorithm != Algorithm::EdDSA {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(key.as_bytes())
        .map_err(|_| Error::from(ErrorKind::InvalidEddsaKey))?;
    Ok(Box::new(EdSigner(pair)))
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
    if *algorithm != Algorithm::EdDSA {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    let key = key.try_get_as_bytes()?.to_vec();
    Ok(Box::new(EdVerifier(UnparsedPublicKey::new(&ED25519, key))))
}

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: signer,
    verifier_factory: verifier,
    key_utils: KeyUtils::new_unimplemented(),
};

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Somebody else's provider in this process serves as well.
        let _already = PROVIDER.install_default();
    });
}

/// Signs claims with an Ed25519 key (PKCS#8).
///
/// # Errors
/// The key is none.
pub fn sign<T: Serialize>(
    typ: &str,
    kid: Option<&str>,
    claims: &T,
    pkcs8: &[u8],
) -> Result<String, TokenError> {
    install();
    let mut header = Header::new(Algorithm::EdDSA);
    header.typ = Some(typ.to_owned());
    header.kid = kid.map(str::to_owned);
    jsonwebtoken::encode(&header, claims, &EncodingKey::from_ed_der(pkcs8))
        .map_err(|_| TokenError::Invalid)
}

/// The `kid` of a token, unverified.
///
/// # Errors
/// The token cannot be read, or has none.
pub fn key_id(token: &str) -> Result<String, TokenError> {
    jsonwebtoken::decode_header(token)
        .ok()
        .and_then(|header| header.kid)
        .ok_or(TokenError::Invalid)
}

/// Verifies type, algorithm and signature with a raw 32-byte Ed25519 key, and returns the claims. Times and audience are the caller's to check.
///
/// # Errors
/// [`TokenError::Invalid`].
pub fn verify<T: DeserializeOwned + Clone>(
    token: &str,
    typ: &str,
    key: &[u8],
) -> Result<T, TokenError> {
    install();
    let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Invalid)?;
    if header.typ.as_deref() != Some(typ) {
        return Err(TokenError::Invalid);
    }
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    jsonwebtoken::decode::<T>(token, &DecodingKey::from_ed_der(key), &validation)
        .map(|data| data.claims)
        .map_err(|_| TokenError::Invalid)
}

/// Verifies an access token for one audience at `now` (Unix seconds).
///
/// # Errors
/// [`TokenError::Expired`] after `exp` plus leeway, else [`TokenError::Invalid`].
pub fn verify_access(
    token: &str,
    key: &[u8],
    audience: &str,
    now: i64,
    leeway_seconds: i64,
) -> Result<AccessClaims, TokenError> {
    let claims: AccessClaims = verify(token, ACCESS_TOKEN_TYPE, key)?;
    if claims.aud != audience || claims.iat > now + leeway_seconds {
        return Err(TokenError::Invalid);
    }
    if claims.exp.saturating_add(leeway_seconds) < now {
        return Err(TokenError::Expired);
    }
    Ok(claims)
}

#[cfg(test)]
mod tests {
    use ring::{rand::SystemRandom, signature::KeyPair};

    use super::*;

    fn claims() -> AccessClaims {
        AccessClaims {
            iss: "interior.example".into(),
            sub: "u".into(),
            device: "d".into(),
            aud: "ds:interior.example".into(),
            iat: 1_000,
            exp: 1_600,
            jti: "j".into(),
            cnf: Confirmation { jkt: "t".into() },
        }
    }

    fn key() -> (Vec<u8>, Vec<u8>) {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        (pkcs8.as_ref().to_vec(), pair.public_key().as_ref().to_vec())
    }

    #[test]
    fn a_good_token_verifies_and_its_time_is_the_callers() {
        let (private, public) = key();
        let token = sign(ACCESS_TOKEN_TYPE, Some("k1"), &claims(), &private).unwrap();
        assert_eq!(key_id(&token).unwrap(), "k1");
        let check = |aud, now| verify_access(&token, &public, aud, now, 60);
        assert_eq!(check("ds:interior.example", 1_660).unwrap(), claims());
        assert_eq!(
            check("ds:interior.example", 1_661),
            Err(TokenError::Expired)
        );
        assert_eq!(check("ds:interior.example", 939), Err(TokenError::Invalid));
        assert_eq!(
            check("as:interior.example", 1_100),
            Err(TokenError::Invalid)
        );
    }

    /// The example of RFC 8037, appendix A.3.
    #[test]
    fn the_thumbprint_is_that_of_the_rfc() {
        let key = URL_SAFE_NO_PAD
            .decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
            .unwrap();
        assert_eq!(
            thumbprint(&key),
            "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
        );
    }

    #[test]
    fn another_key_another_type_and_a_short_key_are_refused() {
        let (private, public) = key();
        let (_, other) = key();
        let token = sign(ACCESS_TOKEN_TYPE, None, &claims(), &private).unwrap();
        let plain = sign("JWT", None, &claims(), &private).unwrap();
        let check =
            |token: &str, key: &[u8]| verify_access(token, key, "ds:interior.example", 1_100, 60);
        assert_eq!(check(&token, &other), Err(TokenError::Invalid));
        assert_eq!(check(&token, &public[..31]), Err(TokenError::Invalid));
        assert_eq!(check(&token, &[]), Err(TokenError::Invalid));
        assert_eq!(check(&plain, &public), Err(TokenError::Invalid));
        assert_eq!(check("a.b.c", &public), Err(TokenError::Invalid));
    }
}
