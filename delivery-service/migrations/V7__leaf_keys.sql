-- The signature key of the leaf that a member was let in with: what it signs is verified with it, whatever tree somebody stores.
ALTER TABLE members ADD COLUMN signature_key bytea;
