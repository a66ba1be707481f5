-- A statement that rests on something says so: where that is not so it fails with a SQLSTATE of its own, and with it its
-- transaction.
CREATE FUNCTION assume(holds boolean) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF holds THEN
        RETURN true;
    END IF;
    RAISE EXCEPTION 'something that a statement rests on is not so' USING ERRCODE = 'ZA001';
END
$$;
