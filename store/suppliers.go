package store

// supplierTables are the tables of suppliers: their risk assessments, the extensions of
// their contracts, and the notices to their sponsors.
const supplierTables = `
CREATE TABLE assessments (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE extensions (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE sponsor_notices (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
`
