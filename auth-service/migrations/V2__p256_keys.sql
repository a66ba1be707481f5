-- A device may have a P-256 key besides its Ed25519 key: an uncompressed point.
ALTER TABLE device_keys DROP CONSTRAINT device_keys_public_key_check;
ALTER TABLE device_keys ADD CONSTRAINT device_keys_public_key_check CHECK (length(public_key) IN (32, 65));
