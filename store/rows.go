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

// Every table has the same shape: an id, a body, and perhaps columns by which
// rows are found. So one piece of code reads and writes them all.
type table uint8

const (
	requests table = iota
	leases
	counters
	blocks
	idempotency
	asks
	signingKeys
	notices
	openReviews
	sessions
	logouts
	logins
	people
	tellings
	tableCount
)

var tables = [tableCount]struct {
	name   string
	idSize int // 0: not fixed
	extra  []string
}{
	requests:    {"requests", 16, []string{"lapses"}},
	leases:      {"leases", 16, []string{"due"}},
	counters:    {"counters", 0, []string{"expires"}},
	blocks:      {"blocks", 0, nil},
	idempotency: {"idempotency", 32, []string{"expires"}},
	asks:        {"asks", 32, []string{"expires"}},
	signingKeys: {"signing_keys", 0, []string{"purpose"}},
	notices:     {"notices", 16, []string{"due", "channel", "urgent", "requester"}},
	openReviews: {"reviews", 0, nil},
	sessions:    {"sessions", 32, []string{"expires"}},
	logouts:     {"logouts", 0, []string{"expires"}},
	logins:      {"logins", 32, []string{"expires"}},
	people:      {"people", 0, nil},
	tellings:    {"tellings", 0, []string{"expires"}},
}

// A row is a broker.Row as it is stored.
type row struct {
	key   broker.Key
	table table
	id    []byte
	body  []byte
	extra []any // one a column
	live  live  // of a lease
}

// live is what a lease is found by as long as it lives. It has a table of its
// own, ordered by id and no longer than what lives, because leases are kept
// forever, and an index on them would be as well.
type live struct {
	until   int64 // when it ends by time alone; 0: it has ended
	lingers int64 // when its credential stops working, though it has ended; 0: it has stopped
	ending  bool
	kind    kind
	request broker.RequestID
	holder  string
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
	case broker.NoticeID:
		return notices, k[:], nil
	case broker.ReviewKey:
		return openReviews, joined(k.Entitlement), nil
	case broker.SessionKey:
		return sessions, k[:], nil
	case broker.LogoutKey:
		return logouts, joined(k.Provider, k.Claim, k.Value), nil
	case broker.LoginKey:
		return logins, k[:], nil
	case broker.PersonKey:
		return people, joined(string(k)), nil
	case broker.TellingKey:
		return tellings, joined(string(k.Request[:]), k.Channel), nil
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
	out.extra = make([]any, len(tables[out.table].extra)) // NULL each
	switch r := r.(type) {
	case *broker.Request:
		out.body = encode(r, requestFields)
		if r.Status == broker.RequestPending {
			out.extra = []any{ceilMillis(r.Lapses)}
		}
	case *broker.Lease:
		out.body = encode(r, leaseFields)
		out.live = live{liveUntil(r), lingersUntil(r), r.Status == broker.LeaseRevoking, kind{r.Entitlement, r.Issuer}, r.Request, r.Holder}
		if due := r.Due(); !due.IsZero() {
			out.extra = []any{due.UnixMilli()}
		}
	case *broker.Counter:
		out.body = encode(r, counterFields)
		out.extra = []any{ceilMillis(r.Expires)}
	case *broker.Block:
		out.body = encode(r, blockFields)
	case *broker.Idempotency:
		out.body = encode(r, idempotencyFields)
		out.extra = []any{ceilMillis(r.Created.Add(idempotencyLasts))}
	case *broker.OpenAsk:
		out.body = encode(r, askFields)
		out.extra = []any{ceilMillis(r.Expires)}
	case *broker.SigningKey:
		out.body = encode(r, signingKeyFields)
		out.extra = []any{r.ID.Purpose}
	case *broker.Notice:
		out.body = encode(r, noticeFields)
		out.extra = noticeExtra(r)
	case *broker.Reviews:
		out.body = encode(r, reviewsFields)
	case *broker.Session:
		out.body = encode(r, sessionFields)
		out.extra = []any{ceilMillis(r.Expires)}
	case *broker.Logout:
		out.body = encode(r, logoutFields)
		out.extra = []any{ceilMillis(r.Expires)}
	case *broker.Login:
		out.body = encode(r, loginFields)
		out.extra = []any{ceilMillis(r.Expires)}
	case *broker.Account:
		out.body = encode(r, accountFields)
	case *broker.Telling:
		out.body = encode(r, tellingFields)
		out.extra = []any{ceilMillis(r.Expires)}
	default:
		return row{}, fmt.Errorf("a row of type %T has no table", r)
	}
	return out, nil
}

// noticeExtra is by what a notice is found as long as it is due. What alarms has
// no requester there: nobody has too many alarms.
func noticeExtra(n *broker.Notice) []any {
	extra := []any{nil, n.Channel, n.Urgent(), nil}
	if !n.Due.IsZero() {
		extra[0] = n.Due.UnixMilli()
	}
	if n.Requester != "" && !n.Urgent() {
		extra[3] = n.Requester
	}
	return extra
}

// Later than any expiry: the leases that time alone does not end. Those that
// are being ended stand out, so that they can be counted without reading the
// others' bodies.
const (
	forever   = math.MaxInt64
	tillEnded = forever - 1 // not yet of leases that were last written before there was this
)

// liveUntil is when a lease stops to be live by time alone; 0: it has ended.
func liveUntil(l *broker.Lease) int64 {
	switch l.Status {
	case broker.LeaseActive:
		if l.Due().IsZero() {
			return ceilMillis(l.Expires)
		}
		return forever // until somebody ends it
	case broker.LeaseIssuing:
		return forever
	case broker.LeaseRevoking:
		return tillEnded
	}
	return 0
}

// lingersUntil is when an ended lease's credential stops working; 0: it has.
func lingersUntil(l *broker.Lease) int64 {
	if l.OutlivesEnd(l.Ended) {
		return ceilMillis(l.Expires)
	}
	return 0
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
	case broker.NoticeID:
		r := &broker.Notice{ID: k}
		out, err = r, decode(body, r, noticeFields)
	case broker.ReviewKey:
		r := &broker.Reviews{ReviewKey: k}
		out, err = r, decode(body, r, reviewsFields)
	case broker.SessionKey:
		r := &broker.Session{SessionKey: k}
		out, err = r, decode(body, r, sessionFields)
	case broker.LogoutKey:
		r := &broker.Logout{LogoutKey: k}
		out, err = r, decode(body, r, logoutFields)
	case broker.LoginKey:
		r := &broker.Login{LoginKey: k}
		out, err = r, decode(body, r, loginFields)
	case broker.PersonKey:
		r := &broker.Account{Person: k}
		out, err = r, decode(body, r, accountFields)
	case broker.TellingKey:
		r := &broker.Telling{TellingKey: k}
		out, err = r, decode(body, r, tellingFields)
	default:
		err = errors.New("it has no table")
	}
	if err != nil {
		return nil, fmt.Errorf("reading the row %v: %w", key, err)
	}
	return out, nil
}

// upsert is the statement that writes a row of a table.
func (t table) upsert() string {
	columns := append([]string{"id", "body"}, tables[t].extra...)
	var sets []string
	for _, c := range columns[1:] {
		sets = append(sets, c+" = excluded."+c)
	}
	return fmt.Sprintf("INSERT INTO %s (%s) VALUES (%s) ON CONFLICT (id) DO UPDATE SET %s", tables[t].name,
		strings.Join(columns, ", "), strings.TrimSuffix(strings.Repeat("?, ", len(columns)), ", "), strings.Join(sets, ", "))
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
	case notices:
		return broker.NoticeID(id), nil
	case sessions:
		return broker.SessionKey(id), nil
	case logins:
		return broker.LoginKey(id), nil
	}
	parts, err := split(id)
	switch {
	case err != nil:
		return nil, err
	case t == counters && len(parts) == 3:
		return broker.CounterKey{Policy: parts[0], Holder: parts[1], Entitlement: parts[2]}, nil
	case t == blocks && len(parts) == 2:
		return broker.BlockKey{Kind: parts[0], Name: parts[1]}, nil
	case t == openReviews && len(parts) == 1:
		return broker.ReviewKey{Entitlement: parts[0]}, nil
	case t == logouts && len(parts) == 3:
		return broker.LogoutKey{Provider: parts[0], Claim: parts[1], Value: parts[2]}, nil
	case t == people && len(parts) == 1:
		return broker.PersonKey(parts[0]), nil
	case t == tellings && len(parts) == 2 && len(parts[0]) == len(broker.RequestID{}):
		return broker.TellingKey{Request: broker.RequestID([]byte(parts[0])), Channel: parts[1]}, nil
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
