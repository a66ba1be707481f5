-- How often a last-resort KeyPackage was given out; 0 for one-time ones.
ALTER TABLE key_packages ADD COLUMN last_resort_claims int NOT NULL DEFAULT 0;
-- Since when a last resort that was given out is not given any more: kept for repeats of its claims and for Welcomes that name it.
ALTER TABLE key_packages ADD COLUMN retired_at timestamptz;
CREATE INDEX key_packages_retired ON key_packages (retired_at) WHERE retired_at IS NOT NULL;

UPDATE key_packages k SET last_resort_claims = c.claims
FROM (SELECT domain_id, device_id, ref, count(*)::int AS claims FROM key_package_claims WHERE last_resort GROUP BY 1, 2, 3) c
WHERE k.last_resort AND k.domain_id = c.domain_id AND k.device_id = c.device_id AND k.ref = c.ref;

-- All but the one that was given are replaced.
UPDATE key_packages k SET retired_at = now()
WHERE k.last_resort AND EXISTS (SELECT 1 FROM key_packages n WHERE n.last_resort AND n.domain_id = k.domain_id AND n.device_id = k.device_id
  AND n.suite = k.suite AND (n.not_after, n.ref) > (k.not_after, k.ref));
