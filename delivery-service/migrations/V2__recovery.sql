-- Epochs that may still be taken back keep who began them; `floor_seq` is what a void returns to.
ALTER TABLE epochs
  ADD COLUMN floor_seq bigint,
  ADD COLUMN committer_domain smallint,
  ADD COLUMN committer_device uuid,
  ADD COLUMN committer_user uuid,
  ADD COLUMN confirm_by smallint NOT NULL DEFAULT 0,
  -- When the failures that were reported are looked at.
  ADD COLUMN void_at timestamptz;
CREATE INDEX epochs_void_at ON epochs (void_at) WHERE void_at IS NOT NULL;

ALTER TABLE members
  -- The VOID entry that took back a Commit of this device.
  ADD COLUMN barred_seq bigint,
  -- The Commit that this membership began by was taken back.
  ADD COLUMN voided boolean NOT NULL DEFAULT false;

CREATE TABLE voids (
  group_id bytea NOT NULL,
  void_seq bigint NOT NULL,
  first_seq bigint NOT NULL,
  last_seq bigint NOT NULL,
  PRIMARY KEY (group_id, void_seq)
);

ALTER TABLE epoch_reports
  ADD COLUMN user_id uuid,
  -- The encoded FailureReport.
  ADD COLUMN report bytea;

-- A revocation is applied when no group of the device is unmarked.
ALTER TABLE revoked_devices ADD COLUMN applied_at timestamptz;
CREATE INDEX revoked_devices_unapplied ON revoked_devices (device_id) WHERE applied_at IS NULL;

-- Suspended users and devices with an expired certificate: cut off, and nowhere removed.
CREATE TABLE suspended (
  domain_id smallint NOT NULL,
  subject_id uuid NOT NULL,
  expired boolean NOT NULL,
  PRIMARY KEY (subject_id, domain_id)
);

-- Which live device is asked to do something for a group, and until when nobody else is.
CREATE TABLE asked (
  group_id bytea PRIMARY KEY,
  domain_id smallint NOT NULL,
  device_id uuid NOT NULL,
  until timestamptz NOT NULL
);

-- A pruned entry keeps its place, its id and its chain value, and loses its payload.
ALTER TABLE log ADD COLUMN pruned boolean NOT NULL DEFAULT false;
