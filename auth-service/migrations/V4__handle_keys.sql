-- The form of a handle in which all spellings of it are equal (RFC 8265, UsernameCaseMapped). The program makes it:
-- `lower` in a database with the "C"
-- locale knows ASCII only, and nothing here normalises. `auth-service migrate` fills it for everybody who is here
-- already.
ALTER TABLE users ADD COLUMN handle_key text COLLATE "C";
ALTER TABLE users ADD CONSTRAINT users_handle_key_known CHECK (handle_key IS NOT NULL) NOT VALID;
CREATE UNIQUE INDEX users_handle_key ON users (handle_key);
-- The handle of a person who had to get another one, since an older person has it in another spelling, or it is none.
ALTER TABLE users ADD COLUMN former_handle text;
DROP INDEX users_handle;
