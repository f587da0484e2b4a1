package broker

import (
	"context"
	"errors"
	"time"

	"accessbroker.internal/audit"
)

// A Store keeps rows and the log. It is safe for concurrent use.
type Store interface {
	// View runs f on a consistent snapshot, which includes every Update that
	// returned before View was called.
	View(ctx context.Context, f func(Tx) error) error

	// Update runs f as the only writer of all processes that share the database. It
	// returns when its outcome is durable and known, even if ctx ends earlier; an
	// error means that f had no effect.
	//
	// f may run more than once, and must not do I/O, sign or evaluate policy.
	// reads names the rows that f gets, so that a group of Updates fetches them
	// in one round trip. Getting another row is an error, except for rows that f
	// has put.
	Update(ctx context.Context, reads []Key, f func(Tx) error) error
}

// A Reader reads single rows without a transaction. Each answer includes every Update
// that returned before the call, from this Broker or from others on the same database. A
// Reader is safe for concurrent use.
type Reader interface {
	// Lease returns a lease, which the caller must not change, or ErrNotFound.
	Lease(ctx context.Context, id LeaseID) (*Lease, error)

	// Standing returns a standing, which the caller may change, or ErrNotFound. It may lack
	// Updates of other processes on the same database that returned in the last second, so
	// an Update that rests on a standing names it in its reads.
	Standing(ctx context.Context, subject StandingKey) (*Standing, error)

	// Blocked reports whether one of the blocks is in force.
	Blocked(ctx context.Context, blocks []Key) (bool, error)
}

// A Tx is one transaction. It is not safe for concurrent use, and is valid only
// until the function that received it returns.
type Tx interface {
	// Get returns the row of the key, or ErrNotFound. The row is a copy: a
	// change takes effect when it is Put.
	Get(Key) (Row, error)

	// Put inserts or replaces the row. It is buffered. To replace a request or a
	// lease, name its key in reads: its list of records is taken from the row
	// that is replaced (see RecordID).
	//
	// A lease that is opened in the Update that files its request has the same bytes as
	// its ID. A Store can keep the two together: most requests are collected once, and
	// nothing happens to the lease before it expires. So put such a request just before
	// its lease.
	Put(Row)

	// Append adds a record to the log. It is buffered. The store sets the
	// record's time when it commits, so that times never go back. When Update has
	// returned, the entry has the record's index and hash.
	Append(*audit.Entry)

	// Requests and Leases list rows, newest first; with Due, the earliest due
	// first. They work only in a View. A call reads a bounded number of rows, so
	// a page may be short or empty before the end of the list: next is the Before
	// of the next page, and zero if this is the last one.
	Requests(RequestQuery) (page []*Request, next RequestID, err error)
	Leases(LeaseQuery) (page []*Lease, next LeaseID, err error)

	// NoticeChannels returns the channels with undelivered notices. Notices lists
	// undelivered notices of one channel. Backlogs returns the requesters with more
	// than most undelivered notices that are not urgent for one channel, the
	// largest backlog first. They work only in a View.
	NoticeChannels() ([]string, error)
	Notices(NoticeQuery) ([]*Notice, error)
	Backlogs(most, limit int) ([]Backlog, error)

	// Standings lists standings, sorted by name; with Due, the earliest first. It works
	// only in a View.
	Standings(StandingQuery) ([]*Standing, error)

	// Reviews lists the entitlements that have open reviews. It works only in a
	// View.
	Reviews() ([]*Reviews, error)
}

// A Key names a row. The types of keys are those with a method isKey.
type Key interface{ isKey() }

// A Row is stored by its key. Package store has a table for each type of row.
type Row interface{ Key() Key }

func (RequestID) isKey()     {}
func (LeaseID) isKey()       {}
func (CounterKey) isKey()    {}
func (BlockKey) isKey()      {}
func (IdempotencyID) isKey() {}
func (AskKey) isKey()        {}
func (SigningKeyID) isKey()  {}
func (CollectedKey) isKey()  {}

// Key implements Row.
func (r *Request) Key() Key { return r.ID }

// Key implements Row.
func (l *Lease) Key() Key { return l.ID }

// Key implements Row.
func (c *Counter) Key() Key { return c.CounterKey }

// Key implements Row.
func (b *Block) Key() Key { return b.Selector }

// Key implements Row.
func (i *Idempotency) Key() Key { return i.IdempotencyID }

// Key implements Row.
func (c *Collected) Key() Key { return c.CollectedKey }

// Key implements Row.
func (a *OpenAsk) Key() Key { return a.AskKey }

// Key implements Row.
func (k *SigningKey) Key() Key { return k.ID }

// A CounterKey names a counter: one policy's bound on one holder and
// entitlement.
type CounterKey struct{ Policy, Holder, Entitlement string }

// A Counter counts towards bounds. Buckets counts issuances by parts of the period;
// Active has the entries that currently count. Expired entries are dropped when the
// row is next written.
type Counter struct {
	CounterKey
	Buckets map[int64]int        // by the bucket's number since 1970
	Active  map[string]time.Time // lease or request id, and when it no longer counts
	Expires time.Time            // when all of its entries have expired
}

// A BlockKey selects identities, entitlements or issuers: "holder spiffe://…",
// "under spiffe://…", "trust_domain acme.test", "entitlement …", "issuer …".
type BlockKey struct{ Kind, Name string }

// A Block refuses everything that it selects until it is lifted.
type Block struct {
	Selector BlockKey
	Reason   string
	By       string
	Since    time.Time
	Lifted   time.Time // zero: in force
	Ends     time.Time // when its kill switch began to revoke; zero: no kill switch, or it is complete
}

// An IdempotencyID is the SHA-256 of caller, method, path and the header's
// value.
type IdempotencyID [32]byte

// An Idempotency stores the result of a call for 24 h.
type Idempotency struct {
	IdempotencyID
	Body    audit.Digest
	Request RequestID
	Lease   LeaseID
	Created time.Time
	Repeats int // after the first
}

// A CollectedKey is the ID of a request.
type CollectedKey RequestID

// A Collected leads from a request that was collected more than once to its newest
// lease. Each lease leads to the previous one, and the request to its first.
type Collected struct {
	CollectedKey
	Last LeaseID
}

// An AskKey is the digest of a pending request, by which an identical ask
// finds it.
type AskKey audit.Digest

// An OpenAsk leads from an ask to its pending or granted request.
type OpenAsk struct {
	AskKey
	Request RequestID
	Expires time.Time
}

// A SigningKeyID names a private key of the broker.
type SigningKeyID struct{ Purpose, ID string }

// A SigningKey is a private key, sealed. It signs from Signs and is published
// from Published to Retired.
type SigningKey struct {
	ID        SigningKeyID
	Algorithm string
	Public    []byte // PKIX DER
	Sealed    []byte // by a Sealer
	Published time.Time
	Signs     time.Time
	Retires   time.Time
}

// A RequestQuery selects requests; zero fields select all.
type RequestQuery struct {
	Requester   string
	Entitlement string
	Team        string              // of the requester
	Status      RequestStatus       // as derived at Now
	RestsOn     StandingKey         // those that may still have a credential or lead to one
	Below       bool                // with RestsOn: also those that rest on a subject below that SPIFFE ID
	Subject     string              // those on behalf of this identity
	Match       func(*Request) bool // a further condition; nil: none
	Now         time.Time
	Before      RequestID // page: only those older than this
	Limit       int
}

// A StandingQuery selects standings, by their kind or because they are due.
type StandingQuery struct {
	Kind  FactKind
	After string // page: only names after this one
	Due   bool   // see Standing.Due; of all kinds
	Now   time.Time
	Limit int
}

// A LeaseQuery selects leases; zero fields select all.
type LeaseQuery struct {
	Holder      string
	Under       string // a SPIFFE ID: the holder itself or below it
	TrustDomain string
	Entitlement string
	Issuer      string
	Request     RequestID
	Live        bool // its credential may still work at Now: see Lease.Live
	Outliving   bool // ended, but the credential still works: see Lease.OutlivesEnd
	Due         bool // the reaper must act by Now: see Lease.Due
	Skip        int  // the number of due leases to skip
	Now         time.Time
	Before      LeaseID // page: only those older than this
	Limit       int
}

// Get returns the row of a key as its type.
func Get[R Row](tx Tx, key Key) (R, error) {
	row, err := tx.Get(key)
	if err != nil {
		var none R
		return none, err
	}
	return row.(R), nil
}

func isNotFound(err error) bool { return errors.Is(err, ErrNotFound) }

// keys returns a list of keys as reads.
func keys[K Key](list []K) []Key {
	out := make([]Key, len(list))
	for i, k := range list {
		out[i] = k
	}
	return out
}
