package store

// ruleFileTables hold the files of revisions by their digests, which is what the log
// records. SQLite has them in a folder next to the database.
const ruleFileTables = `
CREATE TABLE rule_files (digest BLOB NOT NULL PRIMARY KEY, content BLOB NOT NULL);
`
