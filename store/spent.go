package store

// spentTables is the table of what may be used once, such as proofs of possession.
const spentTables = `
CREATE TABLE spent (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, expires INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX spent_expires ON spent (expires);
`
