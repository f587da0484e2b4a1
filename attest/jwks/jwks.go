// Package jwks reads public keys in JWK Sets (RFC 7517) and verifies signatures with
// them (RFC 7515, RFC 7518, RFC 8037).
//
// It is stricter than the libraries: a key that is weak, ambiguous, not in its one
// canonical form, or for another purpose is left out of the set and reported. The
// remaining keys stay usable, because RFC 7517, section 5, and the SPIFFE bundle
// format require that a set with keys of an unknown kind works.
package jwks

import (
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"accessbroker.internal/internal/strictjson"
)

// Bounds of a set.
const (
	maxDepth = 8
	maxKeys  = 512
	maxKeyID = 1024 // bytes
)

// A Key is a public key. It is immutable.
type Key struct {
	ID   string            // kid; may be empty
	Use  string            // use; may be empty
	Cert *x509.Certificate // the first certificate of x5c, or nil

	index      int              // in keys
	public     crypto.PublicKey // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey
	algorithms []string         // with which it may verify; never empty
}

// Equal reports whether k and other are the same key for the same purpose.
func (k *Key) Equal(other *Key) bool {
	return k.ID == other.ID && k.Use == other.Use && slices.Equal(k.algorithms, other.algorithms) && k.sameKey(other) &&
		(k.Cert == nil) == (other.Cert == nil) && (k.Cert == nil || k.Cert.Equal(other.Cert))
}

func (k *Key) sameKey(other *Key) bool {
	return k.public.(interface{ Equal(crypto.PublicKey) bool }).Equal(other.public)
}

// Allows reports whether the key may verify signatures of the algorithm.
func (k *Key) Allows(algorithm string) bool { return slices.Contains(k.algorithms, algorithm) }

// A Reason is why a key was left out. The set is closed, so that metrics can use it
// as a label.
type Reason string

// Reasons.
const (
	Malformed   Reason = "malformed"    // not a JWK, or a value is not in its canonical form
	UnknownType Reason = "unknown_type" // kty or crv is unknown
	OtherUse    Reason = "other_use"    // use, key_ops or alg is for another purpose
	WeakKey     Reason = "weak_key"     // too short, too long, or of a known weakness
	PrivateKey  Reason = "private_key"  // the set publishes the private key
	NoKeyID     Reason = "no_kid"       // kid is missing where it is required
	SameKeyID   Reason = "same_kid"     // other keys have the same kid and algorithm
	Certificate Reason = "certificate"  // x5c is not usable or belongs to another key
)

// Reasons lists all reasons.
var Reasons = []Reason{Malformed, UnknownType, OtherUse, WeakKey, PrivateKey, NoKeyID, SameKeyID, Certificate}

// A LeftOut is a key that is not in the set.
type LeftOut struct {
	Index  int    // in keys
	ID     string // kid, if it is readable
	Reason Reason
	Detail string // for people; quotes only kid, kty, crv, use and alg
}

// String describes the key for a log or a terminal.
func (l LeftOut) String() string {
	name := fmt.Sprintf("key %d", l.Index+1)
	if l.ID != "" {
		name += fmt.Sprintf(" (kid %s)", quote(l.ID))
	}
	return name + ": " + l.Detail
}

// leave is an error with a Reason.
type leave struct {
	reason Reason
	detail string
}

func (l *leave) Error() string { return l.detail }

func leftOut(reason Reason, format string, args ...any) error {
	return &leave{reason, fmt.Sprintf(format, args...)}
}

// quote quotes a value of the set and truncates it.
func quote(s string) string {
	const longest = 64
	if len(s) > longest {
		s = strings.ToValidUTF8(s[:longest], "") + "…"
	}
	return fmt.Sprintf("%q", s)
}

// A Set is a parsed JWK Set.
type Set struct {
	Keys    []Key
	LeftOut []LeftOut
	Members map[string]json.RawMessage // of the document, except for keys
}

// Parse parses a JWK Set and keeps the keys whose use is one of uses, where "" means
// a key without use. It fails only if the document itself is not a JWK Set. A set
// without any usable key is valid and trusts nothing.
func Parse(document []byte, uses ...string) (*Set, error) {
	members, err := strictjson.Outline(document, maxDepth)
	if err != nil {
		return nil, fmt.Errorf("the JWK Set %w", err)
	}
	var raw []json.RawMessage
	if list := members["keys"]; len(list) == 0 || list[0] != '[' || json.Unmarshal(list, &raw) != nil {
		return nil, errors.New("the JWK Set has no list of keys (RFC 7517, section 5.1)")
	}
	if len(raw) > maxKeys {
		return nil, fmt.Errorf("the JWK Set has %d keys, more than %d", len(raw), maxKeys)
	}
	delete(members, "keys")
	s := &Set{Members: members}
	for i, one := range raw {
		key, err := parseKey(one, uses)
		key.index = i
		s.add(key, err)
	}
	s.dropAmbiguous()
	return s, nil
}

// add adds a key, or reports why it is left out.
func (s *Set) add(key Key, err error) {
	if err == nil {
		s.Keys = append(s.Keys, key)
		return
	}
	var l *leave
	if !errors.As(err, &l) {
		l = &leave{Malformed, err.Error()}
	}
	s.LeftOut = append(s.LeftOut, LeftOut{Index: key.index, ID: key.ID, Reason: l.reason, Detail: l.detail})
	slices.SortStableFunc(s.LeftOut, func(a, b LeftOut) int { return a.Index - b.Index })
}

// Filter leaves out the keys for which check returns a reason.
func (s *Set) Filter(check func(*Key) (reason Reason, detail string)) {
	all := s.Keys
	s.Keys = nil
	for i := range all {
		reason, detail := check(&all[i])
		if reason == "" {
			s.add(all[i], nil)
			continue
		}
		s.add(all[i], &leave{reason, detail})
	}
}

// dropAmbiguous removes keys that kid and algorithm do not tell apart: a signature
// could be checked with either, and parsers disagree on which. The same key may be
// repeated. Keys of different types may share a kid (RFC 7517, section 4.5).
func (s *Set) dropAmbiguous() {
	ambiguous := map[int]bool{} // by index
	for i := range s.Keys {
		for j := range s.Keys[:i] {
			a, b := &s.Keys[i], &s.Keys[j]
			if a.ID != "" && a.ID == b.ID && a.Use == b.Use && !a.sameKey(b) && slices.ContainsFunc(a.algorithms, b.Allows) {
				ambiguous[a.index], ambiguous[b.index] = true, true
			}
		}
	}
	s.Filter(func(k *Key) (Reason, string) {
		if ambiguous[k.index] {
			return SameKeyID, "another key has the same kid, so that none of them is used"
		}
		return "", ""
	})
}

// parseKey parses one JWK. With an error, the key has at most an ID.
func parseKey(raw json.RawMessage, uses []string) (key Key, err error) {
	members, err := strictjson.Object(raw, maxDepth)
	if err != nil {
		return key, leftOut(Malformed, "the key %v", err)
	}
	m := jwk(members)
	id, err := m.text("kid")
	if err != nil || len(id) > maxKeyID {
		return key, leftOut(Malformed, "kid is not a string of at most %d bytes", maxKeyID)
	}
	key, err = m.key(uses)
	key.ID = id
	return key, err
}

// A jwk holds the members of a JWK. Unknown members are ignored (RFC 7517, section 4).
type jwk map[string]json.RawMessage

// text returns a member that must be a string, or "" if it is absent.
func (m jwk) text(name string) (string, error) {
	raw, ok := m[name]
	if !ok {
		return "", nil
	}
	text, ok := strictjson.Text(raw)
	if !ok {
		return "", leftOut(Malformed, "%s is not a string", name)
	}
	return text, nil
}

// bytes returns a member that must be base64url without padding (RFC 7515, section 2).
func (m jwk) bytes(name string) ([]byte, error) {
	text, err := m.text(name)
	if err != nil {
		return nil, err
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) == 0 || strings.ContainsAny(text, "\r\n") {
		return nil, leftOut(Malformed, "%s is missing or is not base64url without padding", name)
	}
	return b, nil
}

// privateMembers are the members of private and symmetric keys (RFC 7518, sections
// 6.2.2, 6.3.2 and 6.4, RFC 8037, section 2, RFC 9964, section 3).
var privateMembers = []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"}

func (m jwk) key(uses []string) (Key, error) {
	use, err := m.text("use")
	if err != nil {
		return Key{}, err
	}
	if _, present := m["use"]; !slices.Contains(uses, use) || present && use == "" {
		return Key{}, leftOut(OtherUse, "its use is %s", orMissing(use))
	}
	for _, name := range privateMembers {
		if _, ok := m[name]; ok {
			return Key{}, leftOut(PrivateKey, "it contains the private key (%s): replace the key, which is no longer secret", name)
		}
	}
	public, fitting, err := m.public()
	if err != nil {
		return Key{}, err
	}
	if err := m.operations(); err != nil {
		return Key{}, err
	}
	alg, err := m.text("alg")
	if err != nil {
		return Key{}, err
	}
	if _, present := m["alg"]; present {
		if !slices.Contains(fitting, alg) {
			return Key{}, leftOut(OtherUse, "its alg is %s, which is not a signature algorithm of this type of key", orMissing(alg))
		}
		fitting = []string{alg}
	}
	cert, err := m.certificate(public)
	return Key{Use: use, Cert: cert, public: public, algorithms: fitting}, err
}

// orMissing quotes a value that may be missing, for a detail.
func orMissing(s string) string {
	if s == "" {
		return "missing"
	}
	return quote(s)
}

// operations checks key_ops (RFC 7517, section 4.3).
func (m jwk) operations() error {
	raw, ok := m["key_ops"]
	if !ok {
		return nil
	}
	var list []string
	if raw[0] != '[' || json.Unmarshal(raw, &list) != nil {
		return leftOut(Malformed, "key_ops is not a list of strings")
	}
	if sorted := slices.Sorted(slices.Values(list)); len(slices.Compact(sorted)) != len(list) {
		return leftOut(Malformed, "key_ops repeats an operation")
	}
	if !slices.Contains(list, "verify") {
		return leftOut(OtherUse, "its key_ops do not contain verify")
	}
	return nil
}

// certificate returns the first certificate of x5c, whose key must be public (RFC
// 7517, section 4.7). It is base64 with padding. Further certificates are ignored
// (X509-SVID, section 6.2).
func (m jwk) certificate(public crypto.PublicKey) (*x509.Certificate, error) {
	raw, ok := m["x5c"]
	if !ok {
		return nil, nil
	}
	var chain []string
	if raw[0] != '[' || json.Unmarshal(raw, &chain) != nil || len(chain) == 0 {
		return nil, leftOut(Certificate, "x5c is not a list of certificates")
	}
	der, err := base64.StdEncoding.Strict().DecodeString(chain[0])
	if err != nil || strings.ContainsAny(chain[0], "\r\n") {
		return nil, leftOut(Certificate, "the certificate in x5c is not base64")
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, leftOut(Certificate, "the certificate in x5c is malformed")
	}
	if own, ok := public.(interface{ Equal(crypto.PublicKey) bool }); !ok || !own.Equal(cert.PublicKey) {
		return nil, leftOut(Certificate, "the certificate in x5c belongs to another key")
	}
	return cert, nil
}
