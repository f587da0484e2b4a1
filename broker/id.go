package broker

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"time"
)

// An ID is a UUIDv7 (RFC 9562): 48 bits of Unix milliseconds, then a counter
// and random bits. IDs made by one process are strictly monotonic, so that
// rows with such keys are appended in order.
type ID [16]byte

// RequestID and LeaseID are IDs of different types, so that they cannot be
// confused. Their text is "req_" or "lse_" and 26 characters of lower-case base32hex, which
// sorts like the bytes.
type (
	RequestID ID
	LeaseID   ID
)

const (
	requestPrefix = "req_"
	leasePrefix   = "lse_"
)

var idText = base32.HexEncoding.WithPadding(base32.NoPadding)

var lastID struct {
	sync.Mutex
	ms  uint64
	seq uint16 // 12 bits
}

// newID returns an ID that sorts after all earlier IDs of this process. If the
// clock is set back, or more than 4,096 are needed in a millisecond, it borrows
// from the future (RFC 9562, section 6.2, method 1).
func newID(now time.Time) (id ID) {
	if _, err := rand.Read(id[8:]); err != nil {
		panic("crypto/rand never fails: " + err.Error())
	}
	lastID.Lock()
	ms := uint64(max(now.UnixMilli(), 0))
	if ms > lastID.ms {
		lastID.ms, lastID.seq = ms, 0
	} else if lastID.seq++; lastID.seq > 0x0fff {
		lastID.ms, lastID.seq = lastID.ms+1, 0
	}
	ms, seq := lastID.ms, lastID.seq
	lastID.Unlock()
	binary.BigEndian.PutUint64(id[:8], ms<<16|0x7000|uint64(seq))
	id[8] = id[8]&0x3f | 0x80
	return id
}

// NewRequestID returns a new request ID. It is safe for concurrent use.
func NewRequestID(now time.Time) RequestID { return RequestID(newID(now)) }

// NewLeaseID returns a new lease ID. It is safe for concurrent use.
func NewLeaseID(now time.Time) LeaseID { return LeaseID(newID(now)) }

// leaseIDAt returns an ID that sorts before all IDs that are created at t or later.
// It identifies no lease.
func leaseIDAt(t time.Time) (id LeaseID) {
	binary.BigEndian.PutUint64(id[:8], uint64(max(t.UnixMilli(), 0))<<16)
	return id
}

func encodeID(prefix string, id [16]byte) string {
	if id == ([16]byte{}) {
		return ""
	}
	b := make([]byte, 0, 30)
	b = append(b, prefix...)
	b = idText.AppendEncode(b, id[:])
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

func parseID(prefix, s string) (id [16]byte, err error) {
	text, ok := strings.CutPrefix(s, prefix)
	if !ok || len(text) != 26 || strings.ToLower(text) != text {
		return id, fmt.Errorf("%w: an id of this kind is %q and 26 characters", ErrNotFound, prefix)
	}
	if _, err := idText.Decode(id[:], []byte(strings.ToUpper(text))); err != nil || encodeID(prefix, id) != s {
		return [16]byte{}, fmt.Errorf("%w: not an id", ErrNotFound)
	}
	return id, nil
}

func (id RequestID) String() string { return encodeID(requestPrefix, id) }
func (id LeaseID) String() string   { return encodeID(leasePrefix, id) }

// Time returns when the request was filed, to the millisecond. It may be slightly later
// than that if many IDs were made at once (see newID).
func (id RequestID) Time() time.Time {
	return time.UnixMilli(int64(binary.BigEndian.Uint64(id[:8]) >> 16)).UTC()
}

// IsZero reports whether the ID is zero: no request.
func (id RequestID) IsZero() bool { return id == RequestID{} }

// IsZero reports whether the ID is zero: no lease.
func (id LeaseID) IsZero() bool { return id == LeaseID{} }

// ParseRequestID parses the text of an ID. It returns ErrNotFound for any other
// text, because no request has such an ID.
func ParseRequestID(s string) (RequestID, error) {
	id, err := parseID(requestPrefix, s)
	return RequestID(id), err
}

// ParseLeaseID parses the text of an ID. It returns ErrNotFound for any other
// text.
func ParseLeaseID(s string) (LeaseID, error) {
	id, err := parseID(leasePrefix, s)
	return LeaseID(id), err
}
