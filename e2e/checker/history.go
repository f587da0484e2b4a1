package checker

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// A Kind is what an operation does.
type Kind string

// The kinds of operations.
const (
	Issue      Kind = "issue"      // request and collect in one call
	Ask        Kind = "ask"        // file a request
	Collect    Kind = "collect"    // collect a credential of an approved request
	Renew      Kind = "renew"      // get a new credential for a lease, which ends
	Return     Kind = "return"     // the holder ends a lease
	Revoke     Kind = "revoke"     // a person ends the lease of another
	Withdraw   Kind = "withdraw"   // the requester withdraws a pending request
	Vote       Kind = "vote"       // a person approves or denies
	Block      Kind = "block"      // a person blocks a holder
	Lift       Kind = "lift"       // a person lifts the block of a holder
	Kill       Kind = "kill"       // a person blocks a holder and revokes all its leases
	Introspect Kind = "introspect" // the holder asks whether a token is active
	Read       Kind = "read"       // read a request
	Checkpoint Kind = "checkpoint" // read the signed checkpoint of the log
)

// An Outcome is what the caller knows about an operation.
type Outcome string

// The outcomes of an operation.
const (
	OK      Outcome = "ok"      // it happened
	Fail    Outcome = "fail"    // it did not happen, and never will
	Unknown Outcome = "unknown" // the answer was lost, or the broker could not tell
)

// An Operation is one call of one replica. It holds no secret: tokens are SHA-256 hashes.
type Operation struct {
	Trace   string    `json:"trace"` // the trace ID of the call
	Client  string    `json:"client"`
	Replica int       `json:"replica"`
	Kind    Kind      `json:"kind"`
	Args    Args      `json:"args"`
	Start   time.Time `json:"start"`
	End     time.Time `json:"end"`
	Outcome Outcome   `json:"outcome"`
	Status  int       `json:"status,omitempty"` // of HTTP; zero: no answer
	Code    string    `json:"code,omitempty"`   // of a problem
	Error   string    `json:"error,omitempty"`  // of the connection
	Answer  Answer    `json:"answer,omitzero"`
}

// Args are what an operation is about.
type Args struct {
	Holder      string `json:"holder,omitempty"` // the caller of Issue, Ask, Collect, Renew and Return; the selected holder of Block, Lift and Kill
	Entitlement string `json:"entitlement,omitempty"`
	Key         string `json:"key,omitempty"` // the idempotency key
	Request     string `json:"request,omitempty"`
	Lease       string `json:"lease,omitempty"`
	Person      string `json:"person,omitempty"`
	Decision    string `json:"decision,omitempty"`
	Token       string `json:"token,omitempty"` // SHA-256 of the introspected token
}

// An Answer is what the broker answered.
type Answer struct {
	Request    string    `json:"request,omitempty"`
	Status     string    `json:"status,omitempty"` // of the request or the lease
	Lease      string    `json:"lease,omitempty"`
	Type       string    `json:"type,omitempty"`  // of the credential
	Token      string    `json:"token,omitempty"` // SHA-256
	Index      int64     `json:"index,omitempty"` // of the receipt
	LeafHash   string    `json:"leaf_hash,omitempty"`
	Expires    time.Time `json:"expires,omitzero"`
	Revocation string    `json:"revocation,omitempty"`
	Active     bool      `json:"active,omitempty"` // of Introspect
	Note       string    `json:"note,omitempty"`   // of Checkpoint: the signed note
}

// A Fault is a disturbance and how long it lasted.
type Fault struct {
	Name   string    `json:"name"`
	Target string    `json:"target"`
	Start  time.Time `json:"start"`
	End    time.Time `json:"end"` // when everything that the fault stopped could work again
}

// An Upstream is a credential that the upstream has made for a lease.
type Upstream struct {
	Lease   string    `json:"lease"`
	Made    time.Time `json:"made"`
	Ended   time.Time `json:"ended,omitzero"` // when the broker revoked it; zero: it still works
	Expires time.Time `json:"expires"`
}

// A History is what happened in one run. Its methods are safe for concurrent use.
type History struct {
	mu         sync.Mutex
	Seed       uint64
	Operations []Operation
	Faults     []Fault
	Upstream   []Upstream
	Settled    time.Time // when the clients had ended and the replicas had recovered, before the log was read

	out *json.Encoder
	err error
}

// A line is one line of a history in a file.
type line struct {
	Seed      *uint64    `json:"seed,omitempty"`
	Operation *Operation `json:"operation,omitempty"`
	Fault     *Fault     `json:"fault,omitempty"`
	Upstream  *Upstream  `json:"upstream,omitempty"`
	Settled   *time.Time `json:"settled,omitempty"`
}

// NewHistory returns an empty history. It writes what is added to w, in JSON Lines.
func NewHistory(w io.Writer, seed uint64) *History {
	h := &History{Seed: seed, out: json.NewEncoder(w)}
	h.write(line{Seed: &seed})
	return h
}

func (h *History) write(l line) {
	if h.out != nil && h.err == nil {
		h.err = h.out.Encode(l)
	}
}

// Add adds an operation that has ended.
func (h *History) Add(o Operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Operations = append(h.Operations, o)
	h.write(line{Operation: &o})
}

// AddFault adds a fault that has ended.
func (h *History) AddFault(f Fault) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Faults = append(h.Faults, f)
	h.write(line{Fault: &f})
}

// Settle adds what the upstream has made, and the end of the run.
func (h *History) Settle(upstream []Upstream, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Upstream, h.Settled = upstream, at
	for _, u := range upstream {
		h.write(line{Upstream: &u})
	}
	h.write(line{Settled: &at})
}

// Count returns the number of operations of a kind with an outcome.
func (h *History) Count(kind Kind, outcome Outcome) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.Operations {
		if h.Operations[i].Kind == kind && h.Operations[i].Outcome == outcome {
			n++
		}
	}
	return n
}

// Err returns the error with which writing the history failed.
func (h *History) Err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err
}

// maxLine bounds a line of a history.
const maxLine = 1 << 20

// ReadHistory reads a history that NewHistory wrote.
func ReadHistory(r io.Reader) (*History, error) {
	h := &History{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for n := 1; lines.Scan(); n++ {
		var l line
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return nil, fmt.Errorf("reading line %d of the history: %w", n, err)
		}
		switch {
		case l.Seed != nil:
			h.Seed = *l.Seed
		case l.Operation != nil:
			h.Operations = append(h.Operations, *l.Operation)
		case l.Fault != nil:
			h.Faults = append(h.Faults, *l.Fault)
		case l.Upstream != nil:
			h.Upstream = append(h.Upstream, *l.Upstream)
		case l.Settled != nil:
			h.Settled = *l.Settled
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading the history: %w", err)
	}
	return h, nil
}

// disturbed returns how much of the time between two instants at least one fault lasted.
func (h *History) disturbed(from, to time.Time) (sum time.Duration) {
	faults := slices.Clone(h.Faults)
	slices.SortFunc(faults, func(a, b Fault) int { return a.Start.Compare(b.Start) })
	for _, f := range faults {
		start, end := f.Start, f.End
		if start.Before(from) {
			start = from
		}
		if end.After(to) {
			end = to
		}
		if end.After(start) {
			sum += end.Sub(start)
			from = end
		}
	}
	return sum
}
