-- The Authentication Service's tables. It knows people and devices, and no groups.

CREATE TABLE users (
  user_id uuid PRIMARY KEY,
  handle text NOT NULL CHECK (length(handle) BETWEEN 1 AND 320),
  display_name text NOT NULL,
  organisation text NOT NULL,
  suspended boolean NOT NULL DEFAULT false,
  created_at timestamptz NOT NULL
);
-- Alice@x and alice@x are one person.
CREATE UNIQUE INDEX users_handle ON users (lower(handle) COLLATE "C");

-- The beginnings that a directory search finds a user by: the words of the name, and the handle, in lower case.
CREATE TABLE user_words (
  word text COLLATE "C" NOT NULL,
  user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
  PRIMARY KEY (word, user_id)
);
CREATE INDEX user_words_user ON user_words (user_id);

-- The code itself is never stored.
CREATE TABLE invitations (
  code_hash bytea PRIMARY KEY CHECK (length(code_hash) = 32),
  user_id uuid NOT NULL REFERENCES users,
  created_at timestamptz NOT NULL,
  expires_at timestamptz NOT NULL,
  used_at timestamptz,
  -- What used it: a repeat of the same request gets the same device.
  enroll_hash bytea,
  device_id uuid,
  CHECK ((used_at IS NULL) = (enroll_hash IS NULL) AND (used_at IS NULL) = (device_id IS NULL))
);
CREATE INDEX invitations_list ON invitations (created_at, code_hash);

CREATE TABLE devices (
  device_id uuid PRIMARY KEY,
  user_id uuid NOT NULL REFERENCES users,
  name text NOT NULL,
  enrolled_at timestamptz NOT NULL,
  -- Never undone. The seq is that of the status feed.
  revoked_seq bigint
);
CREATE INDEX devices_user ON devices (user_id);

-- A key belongs to one device for ever, also after a renewal or a revocation.
CREATE TABLE device_keys (
  public_key bytea PRIMARY KEY CHECK (length(public_key) = 32),
  device_id uuid NOT NULL REFERENCES devices,
  scheme int NOT NULL,
  certificate bytea NOT NULL,
  not_after timestamptz NOT NULL,
  current boolean NOT NULL
);
CREATE UNIQUE INDEX device_keys_current ON device_keys (device_id, scheme) WHERE current;

-- Client assertions that were used, until they would be too old anyway.
CREATE TABLE used_assertions (
  device_id uuid NOT NULL,
  jti text NOT NULL,
  expires_at timestamptz NOT NULL,
  PRIMARY KEY (device_id, jti)
);
CREATE INDEX used_assertions_age ON used_assertions (expires_at);

-- Exactly what was signed, so that every reader gets the same bytes.
CREATE TABLE status_feed (
  seq bigint PRIMARY KEY,
  status bytea NOT NULL,
  signature bytea NOT NULL,
  chain bytea[] NOT NULL
);

CREATE TABLE audit (
  seq bigint PRIMARY KEY,
  at timestamptz NOT NULL,
  actor text NOT NULL,
  action text NOT NULL,
  subject text NOT NULL
);
CREATE FUNCTION audit_only_grows() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN RAISE EXCEPTION 'the audit log only grows'; END $$;
CREATE TRIGGER audit_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
  FOR EACH STATEMENT EXECUTE FUNCTION audit_only_grows();

-- The counters are rows, locked until COMMIT: no reader passes a number that is not there yet.
CREATE TABLE service_state (
  id boolean PRIMARY KEY DEFAULT true CHECK (id),
  incarnation uuid NOT NULL,
  status_seq bigint NOT NULL DEFAULT 0,
  audit_seq bigint NOT NULL DEFAULT 0
);
INSERT INTO service_state (incarnation) VALUES (gen_random_uuid());
