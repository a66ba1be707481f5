-- The past that was applied is named by its last item: `item_sha256` is the hash of the item `item_seq`, where that is `seq`.
ALTER TABLE auth_services
  ADD COLUMN item_seq bigint,
  ADD COLUMN item_sha256 bytea,
  -- Grows with everything that the feed does here, also where `seq` goes back, so that what was remembered before is not taken for the present.
  ADD COLUMN applied bigint NOT NULL DEFAULT 0,
  -- Unix microseconds: the newest time that the feed was known to be whole.
  ADD COLUMN heard_micros bigint;

-- A status of a kind that no program here knew yet cuts its subject off beside everything else that does, and nothing else lifts it.
ALTER TABLE suspended
  ADD COLUMN unknown boolean NOT NULL DEFAULT false,
  -- The status's own time: an older status does not lift a later one, also where a feed is read again.
  ADD COLUMN at_micros bigint NOT NULL DEFAULT 0;
ALTER TABLE suspended DROP CONSTRAINT suspended_pkey, ADD PRIMARY KEY (subject_id, domain_id, unknown);

CREATE TABLE unknown_statuses (
  domain_id smallint NOT NULL,
  item_sha256 bytea NOT NULL,
  seq bigint NOT NULL,
  subject_id uuid NOT NULL,
  -- Encoded `auth.v1.SignedStatus`.
  item bytea NOT NULL,
  PRIMARY KEY (domain_id, item_sha256)
);

-- Every root that was accepted for a domain, with the last intermediates that it vouched for: what was issued under it goes on.
CREATE TABLE auth_roots (
  domain_id smallint NOT NULL,
  root_sha256 bytea NOT NULL,
  root_der bytea NOT NULL,
  intermediates bytea[] NOT NULL DEFAULT '{}',
  accepted_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (domain_id, root_sha256)
);
