package audit

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Digest is a SHA-256. The zero Digest means that there is none.
type Digest [32]byte

// String gives the digest in lower-case hexadecimal.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// IsZero says that there is no digest.
func (d Digest) IsZero() bool { return d == Digest{} }

// MarshalText gives the digest in lower-case hexadecimal.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText wrote, and nothing else.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(d)) || bytes.ContainsAny(text, "ABCDEF") {
		return errDigest
	}
	if _, err := hex.Decode(d[:], text); err != nil {
		return errDigest
	}
	return nil
}

var errDigest = errors.New("a digest is 64 lower-case hexadecimal digits")

// An Opening opens a commitment. It is stored beside the leaf that commits to
// its text, and may be erased: the leaf then still proves that there was a
// text, and nobody can find out which.
type Opening struct {
	Salt [16]byte
	Text string
}

// commitDomain separates commitments from every other hash in the system.
const commitDomain = "accessbroker/commitment/v1\n"

// NewSalt makes a salt, 128 random bits: enough that a short text, say a
// ticket number, can't be found by trying them all.
func NewSalt() (salt [16]byte) {
	_, _ = rand.Read(salt[:]) // never fails
	return salt
}

// Commit commits to a text with a new salt.
func Commit(text string) (Digest, Opening) {
	o := Opening{NewSalt(), text}
	return o.Commitment(), o
}

// Commitment is the digest that o opens: SHA-256 over a prefix of its own, the
// salt and the text.
func (o Opening) Commitment() Digest {
	b := make([]byte, 0, 256)
	b = append(b, commitDomain...)
	b = append(b, o.Salt[:]...)
	return sha256.Sum256(append(b, o.Text...))
}

// Opens says whether o is what d commits to.
func (o Opening) Opens(d Digest) bool { return o.Commitment() == d }

// commitments gives where in the record the commitments of a field stand.
func (r *Record) commitments(field string) Digest {
	switch {
	case r.Request != nil && field == "justification":
		return r.Request.Justification
	case r.Request != nil && field == "ticket":
		return r.Request.Ticket
	case r.Request != nil && field == "parameters":
		return r.Request.Parameters
	case r.Request != nil && field == "source":
		return r.Request.Source
	case r.Approval != nil && field == "comment":
		return r.Approval.Comment
	case r.End != nil && field == "reason":
		return r.End.Reason
	case r.Block != nil && field == "reason":
		return r.Block.Reason
	}
	return Digest{}
}

// CheckOpenings says whether every opening opens the record's commitment of
// its name, so that no text stands beside a leaf that it has nothing to do with.
func (r *Record) CheckOpenings(openings map[string]Opening) error {
	for _, field := range slices.Sorted(maps.Keys(openings)) {
		if d := r.commitments(field); d.IsZero() {
			return fmt.Errorf("the opening %q has no commitment in the record", field)
		} else if !openings[field].Opens(d) {
			return fmt.Errorf("the opening %q does not open the record's commitment: its text or salt is not the one committed to", field)
		}
	}
	return nil
}

// appendOpenings writes openings as they are stored: a JSON object by field
// name; nothing if there are none.
func appendOpenings(b []byte, openings map[string]Opening) []byte {
	if len(openings) == 0 {
		return b
	}
	sep := byte('{')
	for _, field := range slices.Sorted(maps.Keys(openings)) {
		o := openings[field]
		b = append(b, sep)
		b = AppendString(b, field)
		b = append(b, `:{"salt":"`...)
		b = hex.AppendEncode(b, o.Salt[:])
		b = append(b, `","text":`...)
		b = AppendString(b, o.Text)
		b = append(b, '}')
		sep = ','
	}
	return append(b, '}')
}

// DecodeOpenings reads what is stored beside a leaf; nothing means none.
func DecodeOpenings(b []byte) (map[string]Opening, error) {
	if len(b) == 0 {
		return nil, nil
	}
	var wire map[string]struct{ Salt, Text string }
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&wire); err != nil {
		return nil, fmt.Errorf("decoding openings: %w", err)
	}
	openings := make(map[string]Opening, len(wire))
	for field, w := range wire {
		o := Opening{Text: w.Text}
		if len(w.Salt) != hex.EncodedLen(len(o.Salt)) {
			return nil, fmt.Errorf("decoding openings: the salt of %q is not 16 bytes", field)
		}
		if _, err := hex.Decode(o.Salt[:], []byte(w.Salt)); err != nil {
			return nil, fmt.Errorf("decoding openings: the salt of %q: %w", field, err)
		}
		openings[field] = o
	}
	return openings, nil
}
