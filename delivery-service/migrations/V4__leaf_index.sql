-- Where a member's leaf is in the tree, so that what is about one leaf reads one leaf. Absent where an older program wrote the row.
ALTER TABLE members ADD COLUMN leaf_index int;
