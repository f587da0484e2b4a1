package jwks

import (
	"encoding/base64"
	"errors"
	"strings"

	"accessbroker.internal/internal/strictjson"
)

// A Signed is a parsed JWS in compact serialization (RFC 7515, section 3.1). Nothing
// in it is trustworthy until Verify has returned nil.
type Signed struct {
	Algorithm string
	KeyID     string // may be empty
	Type      string // typ; may be empty
	Payload   []byte

	message, signature []byte
}

// Errors of ParseCompact and Verify do not quote the token.
var (
	errCompact = errors.New("the token is not three base64url parts with dots between them (RFC 7515, section 3.1)")
	errHeader  = errors.New("the header of the token is malformed")
	errCrit    = errors.New("the header of the token has a critical extension")
	errNoKey   = errors.New("no key of the set fits the token")
)

// ParseCompact parses a JWS. It ignores header parameters that it does not use, such
// as jwk and x5c, with which a token would choose its own key, and refuses crit
// (RFC 7515, section 4.1.11), so that b64 has no effect.
func ParseCompact(token string) (*Signed, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 || strings.ContainsAny(token, "\r\n") { // which the decoder skips
		return nil, errCompact
	}
	var decoded [3][]byte
	for i, part := range parts {
		var err error
		if decoded[i], err = base64.RawURLEncoding.Strict().DecodeString(part); err != nil {
			return nil, errCompact
		}
	}
	header, err := strictjson.Object(decoded[0], maxDepth)
	if err != nil {
		return nil, errHeader
	}
	if _, ok := header["crit"]; ok {
		return nil, errCrit
	}
	s := &Signed{Payload: decoded[1], message: []byte(token[:len(token)-len(parts[2])-1]), signature: decoded[2]}
	for name, value := range map[string]*string{"alg": &s.Algorithm, "kid": &s.KeyID, "typ": &s.Type} {
		if *value, err = jwk(header).text(name); err != nil {
			return nil, errHeader
		}
	}
	return s, nil
}

// Verify returns an error unless the token was signed by one of the keys. The kid of
// the token selects the keys; without one, all keys that fit the algorithm count.
func (s *Signed) Verify(keys []Key) error {
	err := errNoKey
	for i := range keys {
		if s.KeyID != "" && keys[i].ID != s.KeyID || !keys[i].Allows(s.Algorithm) {
			continue
		}
		if err = keys[i].Verify(s.Algorithm, s.message, s.signature); err == nil {
			return nil
		}
	}
	return err
}
