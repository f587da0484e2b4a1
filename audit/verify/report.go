package verify

import (
	"fmt"
	"time"

	"accessbroker.internal/audit"
)

// Options are facts that the auditor knows from sources other than the log.
type Options struct {
	// Key is the log's public key. If it is empty, Verify uses the key in the log
	// itself, and the report says so.
	Key string
	// Checkpoints are signed notes of the log that the auditor kept.
	Checkpoints []string
	// Approvers are the only passkeys whose signatures count. If the list is empty,
	// Verify believes the log about who enrolled which passkey, and when.
	Approvers []Approver
	// Progress, if set, is called with the number of records read, every
	// progressInterval records.
	Progress func(records int64)
}

// progressInterval is the number of records between two calls of Options.Progress.
const progressInterval = 8192

// A Report is the result of a verification.
type Report struct {
	Origin      string               `json:"origin"`
	Key         string               `json:"key"`         // the public key used
	KeyTrusted  bool                 `json:"key_trusted"` // the auditor gave the key
	Records     int64                `json:"records"`
	Root        audit.Digest         `json:"root"`
	First       time.Time            `json:"first"`       // time of the first record
	Last        time.Time            `json:"last"`        // time of the last record
	Checkpoints int                  `json:"checkpoints"` // number of valid signed checkpoints
	Signed      int64                `json:"signed"`      // number of records, from the first, that they cover
	Opened      int64                `json:"opened"`      // number of commitments whose stored text matches
	Signatures  int64                `json:"signatures"`  // number of valid signatures of passkeys
	KeysPinned  bool                 `json:"keys_pinned"` // the auditor gave the approvers
	Unchecked   int64                `json:"unjudged"`    // records about requests of an earlier log, or of more than are remembered
	Kinds       map[audit.Kind]int64 `json:"kinds"`
	Problems    []Problem            `json:"problems,omitempty"` // at most maxProblems
	More        int                  `json:"more,omitempty"`     // number of further problems
	Verified    bool                 `json:"verified"`           // the whole log was read, and it has no problem
}

// maxProblems bounds the report on a log with many problems.
const maxProblems = 100

// A Problem is a place where a log does not verify. It is an error.
type Problem struct {
	Index int64      `json:"index"`          // index of the record; -1: the log as a whole
	Kind  audit.Kind `json:"kind,omitempty"` // kind of the record, if it is readable
	Time  time.Time  `json:"time,omitzero"`  // time of the record, if it is readable
	What  string     `json:"what"`
}

// Error returns the record, if any, and its problem.
func (p *Problem) Error() string {
	switch {
	case p.Index < 0:
		return p.What
	case p.Kind == "":
		return fmt.Sprintf("record %d: %s", p.Index, p.What)
	}
	return fmt.Sprintf("record %d (%s, %s): %s", p.Index, p.Kind, p.Time.Format(audit.TimeFormat), p.What)
}
