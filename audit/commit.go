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

	"accessbroker.internal/internal/strictjson"
)

// A Digest is a SHA-256 hash. The zero Digest means that there is no hash.
type Digest [32]byte

// String returns the digest in lower-case hexadecimal.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// IsZero reports whether d is the zero Digest.
func (d Digest) IsZero() bool { return d == Digest{} }

// MarshalText returns the digest in lower-case hexadecimal.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText accepts only the output of MarshalText.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(d)) {
		return errDigest
	}
	var bad byte
	for i := range d {
		high, low := nibbles[text[2*i]], nibbles[text[2*i+1]]
		bad |= high | low
		d[i] = high<<4 | low
	}
	if bad > 15 {
		return errDigest
	}
	return nil
}

// nibbles holds the values of the lower-case hexadecimal digits, and 255 for all other
// bytes.
var nibbles = func() (table [256]byte) {
	for i := range table {
		table[i] = 255
	}
	for value, digit := range []byte(hexDigits) {
		table[digit] = byte(value)
	}
	return table
}()

var errDigest = errors.New("a digest is 64 lower-case hexadecimal digits")

// An Opening reveals the text behind a commitment. It is stored next to the leaf
// that holds the commitment and can be erased. The leaf then still proves that a
// text existed, but not which one.
type Opening struct {
	Salt [16]byte
	Text string
}

// commitDomain separates commitments from every other hash.
const commitDomain = "accessbroker/commitment/v1\n"

// NewSalt returns 128 random bits, enough to keep short texts such as ticket
// numbers from being found by trial.
func NewSalt() (salt [16]byte) {
	_, _ = rand.Read(salt[:]) // never returns an error
	return salt
}

// Commit returns a commitment to a text, with a new salt, and its opening.
func Commit(text string) (Digest, Opening) {
	o := Opening{NewSalt(), text}
	return o.Commitment(), o
}

// Commitment returns the digest that o opens: SHA-256 over the domain prefix, the
// salt and the text.
func (o Opening) Commitment() Digest {
	b := make([]byte, 0, 256)
	b = append(b, commitDomain...)
	b = append(b, o.Salt[:]...)
	return sha256.Sum256(append(b, o.Text...))
}

// Opens reports whether o is the opening of d.
func (o Opening) Opens(d Digest) bool { return o.Commitment() == d }

// commitment returns the record's commitment to a field's text, or the zero
// Digest.
func (r *Record) commitment(field string) Digest {
	switch {
	case r.Request != nil && field == "justification":
		return r.Request.Justification
	case r.Request != nil && field == "authorization_details":
		return r.Request.Details
	case r.Request != nil && field == "binding_message":
		return r.Request.Message
	case r.Request != nil && field == "ticket":
		return r.Request.Ticket
	case r.Request != nil && field == "parameters":
		return r.Request.Parameters
	case r.Request != nil && field == "source":
		return r.Request.Source
	case r.Approval != nil && field == "comment":
		return r.Approval.Comment
	case r.Call != nil && field == "target":
		return r.Call.Target
	case r.End != nil && field == "reason":
		return r.End.Reason
	case r.Fact != nil && field == "details":
		return r.Fact.Details
	case r.Directory != nil && field == "name":
		return r.Directory.Name
	case r.Supplier != nil && field == "answers":
		return r.Supplier.Answers
	case r.Supplier != nil && field == "evidence":
		return r.Supplier.Evidence
	case r.Supplier != nil && field == "reason":
		return r.Supplier.Reason
	case r.Membership != nil && field == "member":
		return r.Membership.Member
	case r.Block != nil && field == "reason":
		return r.Block.Reason
	case r.Fact != nil && field == "details":
		return r.Fact.Details
	case r.Campaign != nil && field == "reason":
		return r.Campaign.Reason
	}
	return Digest{}
}

// CheckOpenings returns an error if an opening does not match the record's
// commitment of the same name.
func (r *Record) CheckOpenings(openings map[string]Opening) error {
	if len(openings) == 0 {
		return nil
	}
	for _, field := range slices.Sorted(maps.Keys(openings)) {
		if d := r.commitment(field); d.IsZero() {
			return fmt.Errorf("the opening %q has no commitment in the record", field)
		} else if !openings[field].Opens(d) {
			return fmt.Errorf("the opening %q does not match the record's commitment: its text or salt was changed", field)
		}
	}
	return nil
}

// appendOpenings appends the stored form of the openings: a JSON object by field
// name, or nothing if there are none.
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

// CheckStored checks openings in the form in which they are stored next to a leaf,
// as DecodeOpenings and CheckOpenings do, and returns their number.
func (r *Record) CheckStored(stored []byte) (int, error) {
	if n, ok := r.checkCanonical(stored); ok {
		return n, nil
	}
	openings, err := DecodeOpenings(stored)
	if err == nil {
		err = r.CheckOpenings(openings)
	}
	return len(openings), err
}

// checkCanonical checks openings in the form of appendOpenings, without building
// maps. It reports false for every other form and for every mistake, about which
// CheckStored knows more.
func (r *Record) checkCanonical(stored []byte) (n int, ok bool) {
	if len(stored) == 0 {
		return 0, true
	}
	c := codec{mode: reading, buf: stored}
	last := ""
	for c.expect("", '{'); c.err == nil; n++ {
		field := c.readString("field")
		c.expect(field, ':')
		o := c.readOpening()
		if c.err != nil || field <= last || !r.opens(field, o) {
			return 0, false
		}
		last = field
		if c.at < len(stored) && stored[c.at] == '}' {
			return n + 1, c.at+1 == len(stored)
		}
		c.expect(field, ',')
	}
	return 0, false
}

func (r *Record) opens(field string, o Opening) bool {
	d := r.commitment(field)
	return !d.IsZero() && o.Opens(d)
}

// DecodeOpenings decodes the openings that are stored next to a leaf. It returns
// nil if b is empty.
func DecodeOpenings(b []byte) (map[string]Opening, error) {
	if len(b) == 0 {
		return nil, nil
	}
	if err := strictjson.Check(b, 4); err != nil {
		return nil, fmt.Errorf("decoding openings: the text %w", err)
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
		if _, err := hex.Decode(o.Salt[:], []byte(w.Salt)); err != nil || hex.EncodeToString(o.Salt[:]) != w.Salt {
			return nil, fmt.Errorf("decoding openings: the salt of %q is not lower-case hexadecimal", field)
		}
		openings[field] = o
	}
	return openings, nil
}
