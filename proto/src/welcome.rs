//! Welcome (RFC 9420 section 12.4.3.1): read without keys, and cut so that each joiner gets its own part only.

use crate::{
    framing::{self, WireFormat},
    mutants::{self, Mutant},
    wire::{Malformed, Read, Reader, Write},
};

/// A parsed Welcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// Cipher suite code.
    pub suite: u16,
    /// For each joiner its KeyPackageRef and its whole EncryptedGroupSecrets.
    pub secrets: Vec<(Vec<u8>, Vec<u8>)>,
    /// Shared by all joiners.
    pub encrypted_group_info: Vec<u8>,
}

impl Welcome {
    /// Reads an `MLSMessage(Welcome)`.
    ///
    /// # Errors
    /// Malformed, more than `max_bytes`, or one KeyPackageRef twice.
    pub fn parse(message: &[u8], max_bytes: usize) -> Read<Self> {
        let mut reader = Reader::new(framing::body(message, max_bytes, WireFormat::Welcome)?);
        let suite = reader.u16()?;
        let secrets = reader.list(|r| {
            let (bytes, reference) = r.span(|r| {
                let reference = r.vector()?.to_vec();
                let _kem_output = r.vector()?;
                let _ciphertext = r.vector()?;
                Ok(reference)
            })?;
            Ok((reference, bytes.to_vec()))
        })?;
        let encrypted_group_info = reader.vector()?.to_vec();
        reader.finish()?;
        let mut refs: Vec<&Vec<u8>> = secrets.iter().map(|(reference, _)| reference).collect();
        refs.sort_unstable();
        if refs.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(Malformed("a KeyPackageRef twice"));
        }
        Ok(Self {
            suite,
            secrets,
            encrypted_group_info,
        })
    }

    /// Checks that the Welcome says that it is of this suite. Who cuts it writes the group's suite, so that another one
    /// would be relabelled without a word.
    ///
    /// # Errors
    /// It says another suite.
    pub fn check_suite(&self, suite: u16) -> Read<()> {
        if self.suite == suite || mutants::is_on(Mutant::WelcomeSuiteUnchecked) {
            Ok(())
        } else {
            Err(Malformed("the Welcome's suite is not the group's"))
        }
    }

    /// The Welcome of one joiner.
    pub fn cut(&self, reference: &[u8]) -> Option<Vec<u8>> {
        let (_, secrets) = self.secrets.iter().find(|(r, _)| r == reference)?;
        Some(assemble(self.suite, secrets, &self.encrypted_group_info))
    }
}

/// An `MLSMessage(Welcome)` with exactly these EncryptedGroupSecrets.
pub fn assemble(suite: u16, secrets: &[u8], encrypted_group_info: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(secrets.len() + encrypted_group_info.len() + 16);
    body.put(&suite.to_be_bytes());
    body.put_vector(secrets);
    body.put_vector(encrypted_group_info);
    framing::message(WireFormat::Welcome, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(reference: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.put_vector(reference);
        bytes.put_vector(b"kem");
        bytes.put_vector(b"ciphertext");
        bytes
    }

    #[test]
    fn each_joiner_gets_its_part_and_the_shared_one() {
        let both = [secrets(b"one"), secrets(b"two")].concat();
        let message = assemble(1, &both, b"shared");
        let welcome = Welcome::parse(&message, 1000).unwrap();
        assert_eq!(welcome.secrets.len(), 2);
        assert_eq!(
            welcome.cut(b"two"),
            Some(assemble(1, &secrets(b"two"), b"shared"))
        );
        assert_eq!(welcome.cut(b"three"), None);
        for end in 0..message.len() {
            assert!(Welcome::parse(&message[..end], 1000).is_err());
        }
    }

    #[test]
    fn a_welcome_of_another_suite_is_told_apart() {
        let welcome = Welcome::parse(&assemble(3, &secrets(b"one"), b"shared"), 1000).unwrap();
        assert_eq!(welcome.check_suite(3), Ok(()));
        assert!(welcome.check_suite(1).is_err());
    }

    #[test]
    fn one_joiner_twice_is_refused() {
        let twice = [secrets(b"one"), secrets(b"one")].concat();
        assert!(Welcome::parse(&assemble(1, &twice, b"x"), 1000).is_err());
    }
}
