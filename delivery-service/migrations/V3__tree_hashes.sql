-- Hashes of subtrees, each kept by the seq of the Commit that wrote it, like the nodes. (The table was there from the start, and nothing was ever written to it.)
DROP TABLE tree_hashes;
CREATE TABLE tree_hashes (
  group_id bytea NOT NULL,
  node_index int NOT NULL,
  from_seq bigint NOT NULL,
  hash bytea NOT NULL,
  PRIMARY KEY (group_id, node_index, from_seq)
);

-- The oldest tree that somebody still needs is that of the oldest Welcome that waits.
CREATE INDEX welcomes_waiting ON welcomes (group_id, commit_seq) WHERE acked_at IS NULL;
