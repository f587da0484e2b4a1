package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"accessbroker.internal/broker"
)

// Every table has the same shape: an id, a body, and up to maxExtra columns by
// which rows are found. So one piece of code reads and writes them all.
type table uint8

const (
	requests table = iota
	leases
	counters
	blocks
	idempotency
	asks
	signingKeys
	tableCount
)

const maxExtra = 3

var tables = [tableCount]struct {
	name   string
	idSize int // 0: not fixed
	extra  []string
}{
	requests:    {"requests", 16, []string{"lapses"}},
	leases:      {"leases", 16, []string{"due", "live", "kind"}},
	counters:    {"counters", 0, []string{"expires"}},
	blocks:      {"blocks", 0, nil},
	idempotency: {"idempotency", 32, []string{"expires"}},
	asks:        {"asks", 32, []string{"expires"}},
	signingKeys: {"signing_keys", 0, []string{"purpose"}},
}

// A row is a broker.Row as it is stored.
type row struct {
	key   broker.Key
	table table
	id    []byte
	body  []byte
	extra [maxExtra]any
	kind  kind // of a lease, whose number is found when it is written
}

// A kind is what leases are counted by.
type kind struct{ entitlement, issuer string }

// idempotencyLasts is how long a call may be repeated (DESIGN, "Again").
const idempotencyLasts = 24 * time.Hour

// locate gives the table and the id of a key.
func locate(key broker.Key) (table, []byte, error) {
	switch k := key.(type) {
	case broker.RequestID:
		return requests, k[:], nil
	case broker.LeaseID:
		return leases, k[:], nil
	case broker.CounterKey:
		return counters, joined(k.Policy, k.Holder, k.Entitlement), nil
	case broker.BlockKey:
		return blocks, joined(k.Kind, k.Name), nil
	case broker.IdempotencyKey:
		return idempotency, k[:], nil
	case broker.AskKey:
		return asks, k[:], nil
	case broker.SigningKeyID:
		return signingKeys, joined(k.Purpose, k.ID), nil
	}
	return 0, nil, fmt.Errorf("a key of type %T has no table", key)
}

// joined makes one id of several texts, such that no other texts make the same.
func joined(parts ...string) []byte {
	b := make([]byte, 0, 128)
	for _, p := range parts {
		b = binary.AppendUvarint(b, uint64(len(p)))
		b = append(b, p...)
	}
	return b
}

// encodeRow makes a row ready to be stored.
func encodeRow(r broker.Row) (row, error) {
	out := row{key: r.Key()}
	var err error
	if out.table, out.id, err = locate(out.key); err != nil {
		return row{}, err
	}
	switch r := r.(type) {
	case *broker.Request:
		out.body = encode(r, requestFields)
		if r.Status == broker.RequestPending {
			out.extra[0] = ceilMillis(r.Lapses)
		}
	case *broker.Lease:
		out.body = encode(r, leaseFields)
		out.kind = kind{r.Entitlement, r.Issuer}
		if due := r.Due(); !due.IsZero() {
			out.extra[0] = due.UnixMilli()
		}
		out.extra[1] = liveUntil(r)
	case *broker.Counter:
		out.body = encode(r, counterFields)
		out.extra[0] = ceilMillis(r.Expires)
	case *broker.Block:
		out.body = encode(r, blockFields)
	case *broker.Idempotency:
		out.body = encode(r, idempotencyFields)
		out.extra[0] = ceilMillis(r.Created.Add(idempotencyLasts))
	case *broker.OpenAsk:
		out.body = encode(r, askFields)
		out.extra[0] = ceilMillis(r.Expires)
	case *broker.SigningKey:
		out.body = encode(r, signingKeyFields)
		out.extra[0] = r.ID.Purpose
	default:
		return row{}, fmt.Errorf("a row of type %T has no table", r)
	}
	return out, nil
}

// forever is later than any expiry: the leases that time alone does not end.
const forever = math.MaxInt64

// liveUntil is when a lease stops to be live by time alone; nil: it has ended.
func liveUntil(l *broker.Lease) any {
	switch l.Status {
	case broker.LeaseActive:
		return ceilMillis(l.Expires)
	case broker.LeaseIssuing, broker.LeaseRevoking:
		return int64(forever)
	}
	return nil
}

// ceilMillis is the first millisecond that is not before t, so that an index
// never hides what the exact time in the body still shows.
func ceilMillis(t time.Time) int64 { return t.Add(time.Millisecond - 1).UnixMilli() }

// decodeRow makes the row of a key from its body.
func decodeRow(key broker.Key, body []byte) (broker.Row, error) {
	var out broker.Row
	var err error
	switch k := key.(type) {
	case broker.RequestID:
		r := &broker.Request{ID: k}
		out, err = r, decode(body, r, requestFields)
	case broker.LeaseID:
		r := &broker.Lease{ID: k}
		out, err = r, decode(body, r, leaseFields)
	case broker.CounterKey:
		r := &broker.Counter{CounterKey: k}
		out, err = r, decode(body, r, counterFields)
	case broker.BlockKey:
		r := &broker.Block{Selector: k}
		out, err = r, decode(body, r, blockFields)
	case broker.IdempotencyKey:
		r := &broker.Idempotency{IdempotencyKey: k}
		out, err = r, decode(body, r, idempotencyFields)
	case broker.AskKey:
		r := &broker.OpenAsk{AskKey: k}
		out, err = r, decode(body, r, askFields)
	case broker.SigningKeyID:
		r := &broker.SigningKey{ID: k}
		out, err = r, decode(body, r, signingKeyFields)
	default:
		err = errors.New("it has no table")
	}
	if err != nil {
		return nil, fmt.Errorf("reading the row %v: %w", key, err)
	}
	return out, nil
}

// upsert is the statement that writes n rows of a table.
func (t table) upsert(n int) string {
	spec := tables[t]
	columns := append([]string{"id", "body"}, spec.extra...)
	values := "(" + strings.TrimSuffix(strings.Repeat("?,", len(columns)), ",") + ")"
	var set []string
	for _, c := range columns[1:] {
		set = append(set, c+" = excluded."+c)
	}
	return fmt.Sprintf("INSERT INTO %s (%s) VALUES %s ON CONFLICT (id) DO UPDATE SET %s", spec.name,
		strings.Join(columns, ", "), strings.TrimSuffix(strings.Repeat(values+",", n), ","), strings.Join(set, ", "))
}

// selectIn is the query for n rows of a table.
func (t table) selectIn(n int) string {
	return fmt.Sprintf("SELECT id, body FROM %s WHERE id IN (%s)", tables[t].name, strings.TrimSuffix(strings.Repeat("?,", n), ","))
}

// key is the reverse of locate.
func (t table) key(id []byte) (broker.Key, error) {
	if size := tables[t].idSize; size > 0 && len(id) != size {
		return nil, fmt.Errorf("an id of %s has %d bytes, not %d", tables[t].name, len(id), size)
	}
	switch t {
	case requests:
		return broker.RequestID(id), nil
	case leases:
		return broker.LeaseID(id), nil
	case idempotency:
		return broker.IdempotencyKey(id), nil
	case asks:
		return broker.AskKey(id), nil
	}
	parts, err := split(id)
	switch {
	case err != nil:
		return nil, err
	case t == counters && len(parts) == 3:
		return broker.CounterKey{Policy: parts[0], Holder: parts[1], Entitlement: parts[2]}, nil
	case t == blocks && len(parts) == 2:
		return broker.BlockKey{Kind: parts[0], Name: parts[1]}, nil
	case t == signingKeys && len(parts) == 2:
		return broker.SigningKeyID{Purpose: parts[0], ID: parts[1]}, nil
	}
	return nil, fmt.Errorf("an id of %s has %d parts", tables[t].name, len(parts))
}

// split is the reverse of joined.
func split(id []byte) (parts []string, err error) {
	for len(id) > 0 {
		size, n := binary.Uvarint(id)
		if n <= 0 || size > uint64(len(id)-n) {
			return nil, errBody
		}
		parts = append(parts, string(id[n:n+int(size)]))
		id = id[n+int(size):]
	}
	return parts, nil
}
