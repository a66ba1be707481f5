-- A deleted person's names go; the id stays, so that it is never given again.
ALTER TABLE users ADD COLUMN deleted_at timestamptz;
-- Position in the status feed of the end of the device's certificate.
ALTER TABLE devices ADD COLUMN expired_seq bigint;
CREATE INDEX device_keys_end ON device_keys (not_after) WHERE current AND scheme = 2055;
