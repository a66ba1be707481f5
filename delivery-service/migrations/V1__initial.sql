-- The Delivery Service's tables. Two families: by group_id and by device_id, each on one node when sharded.
-- No foreign keys on hot tables (a child insert would wait for its parent's lock), no sequences, no time partitions (uniqueness would need the time).

-- by group

-- Cold; survives deletion, so that an id is never used again.
CREATE TABLE groups (
  group_id bytea PRIMARY KEY CHECK (length(group_id) BETWEEN 16 AND 64),
  suite int NOT NULL,
  creator_domain smallint NOT NULL,
  creator_device uuid NOT NULL,
  create_hash bytea NOT NULL,
  created_at timestamptz NOT NULL,
  deleted_at timestamptz,
  replaced_by bytea
);

-- Hot: the one lock of a group. The fill factor leaves room for HOT updates.
CREATE TABLE group_heads (
  group_id bytea PRIMARY KEY,
  state smallint NOT NULL,
  head_seq bigint NOT NULL,
  epoch bigint NOT NULL,
  epoch_seq bigint NOT NULL,
  floor_seq bigint NOT NULL,
  settled_seq bigint NOT NULL,
  roster_seq bigint NOT NULL,
  pending_removals int NOT NULL DEFAULT 0,
  committer_domain smallint,
  committer_device uuid,
  committer_user uuid,
  confirm_by smallint NOT NULL DEFAULT 0,
  past_epochs int NOT NULL,
  external_join smallint NOT NULL,
  chain bytea NOT NULL,
  last_at timestamptz NOT NULL,
  commits_pruned_to bigint NOT NULL DEFAULT 0,
  messages_pruned_to bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE log (
  group_id bytea NOT NULL,
  seq bigint NOT NULL,
  epoch bigint NOT NULL,
  epoch_seq bigint NOT NULL,
  kind smallint NOT NULL,
  message_id uuid NOT NULL,
  accepted_at timestamptz NOT NULL,
  content_hash bytea NOT NULL,
  chain bytea NOT NULL,
  payload bytea NOT NULL,
  PRIMARY KEY (group_id, seq)
) WITH (autovacuum_vacuum_insert_scale_factor = 0.05);
-- Ciphertext does not compress.
ALTER TABLE log ALTER payload SET STORAGE EXTERNAL;
CREATE UNIQUE INDEX log_message_id ON log (group_id, message_id);
CREATE INDEX log_age ON log USING brin (accepted_at);

-- One row for each standing epoch.
CREATE TABLE epochs (
  group_id bytea NOT NULL,
  epoch bigint NOT NULL,
  epoch_seq bigint NOT NULL,
  group_info bytea NOT NULL,
  group_state_hash bytea NOT NULL,
  tree_width int NOT NULL,
  encrypted_group_info bytea,
  PRIMARY KEY (group_id, epoch_seq)
);
-- Exactly one standing Commit for an epoch, said by the database too.
CREATE UNIQUE INDEX epochs_one_commit ON epochs (group_id, epoch);

-- Intervals of membership. A resync closes one and opens one at the same seq.
CREATE TABLE members (
  group_id bytea NOT NULL,
  domain_id smallint NOT NULL,
  device_id uuid NOT NULL,
  user_id uuid NOT NULL,
  joined_seq bigint NOT NULL,
  removed_seq bigint CHECK (removed_seq >= joined_seq),
  pending smallint NOT NULL DEFAULT 0, -- 1 leaving, 2 revoked
  pending_evidence bytea,
  PRIMARY KEY (group_id, device_id, domain_id, joined_seq)
) WITH (fillfactor = 90);
CREATE UNIQUE INDEX members_now ON members (group_id, device_id, domain_id) WHERE removed_seq IS NULL;
CREATE INDEX members_pending ON members (group_id) WHERE removed_seq IS NULL AND pending > 0;

CREATE TABLE welcomes (
  group_id bytea NOT NULL,
  commit_seq bigint NOT NULL,
  domain_id smallint NOT NULL,
  device_id uuid NOT NULL,
  key_package_ref bytea NOT NULL,
  secrets bytea NOT NULL,
  expires_at timestamptz NOT NULL,
  acked_at timestamptz,
  PRIMARY KEY (group_id, commit_seq, device_id, domain_id)
);
CREATE INDEX welcomes_unread ON welcomes (device_id, domain_id) WHERE acked_at IS NULL;

-- The newest from_seq <= S is the tree at S; NULL = blank.
CREATE TABLE tree_nodes (
  group_id bytea NOT NULL,
  node_index int NOT NULL,
  from_seq bigint NOT NULL,
  node bytea,
  PRIMARY KEY (group_id, node_index, from_seq)
);

-- Node hashes of the current epoch, for checks in O(log n).
CREATE TABLE tree_hashes (
  group_id bytea NOT NULL,
  node_index int NOT NULL,
  hash bytea NOT NULL,
  PRIMARY KEY (group_id, node_index)
) WITH (fillfactor = 70);

CREATE TABLE epoch_reports (
  group_id bytea NOT NULL,
  epoch_seq bigint NOT NULL,
  domain_id smallint NOT NULL,
  device_id uuid NOT NULL,
  state_hash bytea,
  failure smallint,
  signature bytea,
  at timestamptz NOT NULL,
  PRIMARY KEY (group_id, epoch_seq, device_id, domain_id),
  CHECK ((state_hash IS NULL) <> (failure IS NULL))
);

-- by device

-- An add locks the rows of the added devices FOR KEY SHARE, a revocation FOR UPDATE: whichever comes second sees the other.
CREATE TABLE devices (
  domain_id smallint NOT NULL,
  device_id uuid NOT NULL,
  user_id uuid NOT NULL,
  revoked boolean NOT NULL DEFAULT false,
  PRIMARY KEY (device_id, domain_id)
);

-- A device's own index of its groups, written with the Commit.
CREATE TABLE device_groups (
  domain_id smallint NOT NULL,
  device_id uuid NOT NULL,
  group_id bytea NOT NULL,
  seq bigint NOT NULL,
  member boolean NOT NULL,
  welcome_seq bigint,
  PRIMARY KEY (device_id, domain_id, group_id)
);

-- A claimed KeyPackage stays, marked, until not_after: deleting it at the claim would sell it again on a retried publish.
CREATE TABLE key_packages (
  domain_id smallint NOT NULL,
  device_id uuid NOT NULL,
  ref bytea NOT NULL,
  suite int NOT NULL,
  last_resort boolean NOT NULL,
  not_after timestamptz NOT NULL,
  claim_id uuid,
  claimed_at timestamptz,
  body bytea NOT NULL,
  PRIMARY KEY (device_id, domain_id, ref)
);
ALTER TABLE key_packages ALTER body SET STORAGE EXTERNAL;
CREATE INDEX key_packages_stock ON key_packages (device_id, domain_id, suite, not_after) WHERE claim_id IS NULL AND NOT last_resort;
CREATE INDEX key_packages_ref ON key_packages (ref);

-- What each claim was answered, so that a repeat gets the same; also the lock against two equal claims at once.
CREATE TABLE key_package_claims (
  domain_id smallint NOT NULL,
  device_id uuid NOT NULL,
  claim_id uuid NOT NULL,
  claimant_domain smallint NOT NULL,
  claimant_device uuid NOT NULL,
  outcome smallint NOT NULL,
  last_resort boolean NOT NULL DEFAULT false,
  ref bytea,
  claimed_at timestamptz NOT NULL,
  PRIMARY KEY (device_id, domain_id, claim_id)
);
CREATE INDEX key_package_claims_age ON key_package_claims (claimed_at);

-- small, everywhere

CREATE TABLE domains (domain_id smallint PRIMARY KEY, name text NOT NULL UNIQUE);
CREATE TABLE revoked_devices (
  domain_id smallint NOT NULL,
  device_id uuid NOT NULL,
  evidence bytea NOT NULL,
  PRIMARY KEY (device_id, domain_id)
);
-- What each Authentication Service last said of itself, so that this service starts while it is down; and how far its feed was applied.
CREATE TABLE auth_services (
  domain_id smallint PRIMARY KEY,
  service_info bytea NOT NULL,
  history_id bytea,
  seq bigint NOT NULL DEFAULT 0
);
CREATE TABLE service_state (id boolean PRIMARY KEY DEFAULT true CHECK (id), incarnation uuid NOT NULL);
INSERT INTO service_state (incarnation) VALUES (gen_random_uuid());
