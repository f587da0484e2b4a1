package server

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"net/http"
	"strings"
	"time"

	"accessbroker.internal/audit"
)

// A call has an ID of the broker's own, which is unique. A client or a proxy may send
// further IDs, which are not: X-Request-Id and traceparent.

// newCallID returns a UUIDv7 (RFC 9562, section 5.7).
func newCallID(now time.Time) string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	binary.BigEndian.PutUint64(id[:8], uint64(now.UnixMilli())<<16|0x7000|uint64(binary.BigEndian.Uint16(id[6:])&0x0fff))
	id[8] = id[8]&0x3f | 0x80
	text := hex.EncodeToString(id[:])
	return text[:8] + "-" + text[8:12] + "-" + text[12:16] + "-" + text[16:20] + "-" + text[20:]
}

// maxCallID bounds an X-Request-Id.
const maxCallID = 128

// clientCallID returns the X-Request-Id of the client; empty if it is missing, repeated,
// too long or has other characters than common IDs.
func clientCallID(h http.Header) string {
	ids := h["X-Request-Id"]
	if len(ids) != 1 || len(ids[0]) > maxCallID || strings.ContainsFunc(ids[0], notCallIDChar) {
		return ""
	}
	return ids[0]
}

func notCallIDChar(r rune) bool {
	return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && !strings.ContainsRune("-_.~:/+=@", r)
}

// traceOf returns the trace context of a call; zero if it is missing or invalid.
func traceOf(h http.Header) audit.Trace {
	values := h["Traceparent"]
	if len(values) != 1 {
		return audit.Trace{}
	}
	trace, _ := audit.ParseTrace(values[0])
	return trace
}
