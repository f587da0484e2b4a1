package api

import (
	"encoding/json"
	"time"
)

// An AuditRecord is one record of the log with the data to verify it: the
// answer of GET /v1/audit/{index}.
type AuditRecord struct {
	Index    int64              `json:"index"`
	LeafHash string             `json:"leaf_hash"`
	Leaf     []byte             `json:"leaf"`   // base64 of the hashed bytes
	Record   json.RawMessage    `json:"record"` // Leaf as JSON
	Openings map[string]Opening `json:"openings,omitempty"`
	Proof    *InclusionProof    `json:"proof,omitempty"` // absent until a checkpoint covers the record
}

// An AuditPage is one page of a search of the log, newest first: the answer of GET
// /v1/audit. A search reads a bounded number of records, so a page may be short or empty
// before the search is complete.
type AuditPage struct {
	Records    []AuditEntry `json:"records"`
	Next       string       `json:"next_cursor,omitempty"` // empty: the search is complete
	SearchedTo time.Time    `json:"searched_to,omitzero"`  // with Next: the time of the oldest record that was searched
}

// An AuditEntry is a record in a list. GET /v1/audit/{index} returns its proof and texts.
type AuditEntry struct {
	Index   int64           `json:"index"`
	Summary string          `json:"summary"` // one sentence in English, for people
	Record  json.RawMessage `json:"record"`
}

// An Opening is the salt and text of a commitment in a record.
type Opening struct {
	Salt string `json:"salt"` // hex
	Text string `json:"text"`
}

// An InclusionProof proves that a leaf is in the tree of a checkpoint (RFC
// 6962, section 2.1.1).
type InclusionProof struct {
	Origin     string   `json:"origin"`
	Index      int64    `json:"index"`
	Leaf       []byte   `json:"leaf"`   // base64
	Hashes     []string `json:"hashes"` // base64, from the leaf to the root
	Checkpoint string   `json:"checkpoint"`
}
