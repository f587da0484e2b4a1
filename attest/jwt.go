package attest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"accessbroker.internal/broker"
)

// MaxTokenSize is the largest JWT-SVID, in bytes. SPIRE's have about 700.
const MaxTokenSize = 8 << 10

// A token holds the parsed fields of a JWT-SVID. They are not trustworthy until
// verify has checked the signature.
type token struct {
	alg, kid  string
	id        spiffeid.ID
	audience  string
	expires   time.Time
	notBefore time.Time // the later of nbf and iat; zero if there is neither
}

// jwtFailure returns a Failure for a JWT-SVID.
func jwtFailure(cause Cause, detail string) error {
	return &Failure{broker.MethodJWTSVID, cause, detail}
}

// parseToken parses a JWT-SVID as strictly as the specification allows. go-jose
// parses it again to check the signature. parseToken therefore rejects everything
// that two parsers may read differently: duplicate members, unknown header
// fields, base64 with padding or line ends, and numbers that are not integers.
func parseToken(compact string) (token, error) {
	header, claims, err := split(compact)
	if err != nil {
		return token{}, err
	}
	var t token
	if err := t.readHeader(header); err != nil {
		return token{}, err
	}
	if err := t.readClaims(claims); err != nil {
		return token{}, err
	}
	return t, nil
}

// split decodes the compact serialization, the only one that JWT-SVID, section
// 5.1, allows. The JSON serializations may carry several signatures.
func split(compact string) (header, claims []byte, err error) {
	parts := strings.Split(compact, ".")
	if len(parts) != 3 {
		return nil, nil, jwtFailure(CauseMalformed, "the JWT-SVID is not in JWS compact serialization: send three parts with a dot between them")
	}
	var decoded [3][]byte
	for i, part := range parts {
		// RFC 7515, section 2: base64url without padding. Strict and the check for
		// line ends, which Go's decoder skips, leave one encoding per token.
		decoded[i], err = base64.RawURLEncoding.Strict().DecodeString(part)
		if err != nil || len(part) == 0 || strings.ContainsAny(part, "\r\n") {
			return nil, nil, jwtFailure(CauseMalformed, "a part of the JWT-SVID is empty or not base64url (RFC 7515, section 2): check whether the token was truncated or changed in transit")
		}
	}
	return decoded[0], decoded[1], nil
}

// algorithms lists the algorithms of JWT-SVID, section 2.1. It must never contain
// none or HMAC (RFC 8725, section 2.1).
var algorithms = map[string]bool{
	"RS256": true, "RS384": true, "RS512": true,
	"ES256": true, "ES384": true, "ES512": true,
	"PS256": true, "PS384": true, "PS512": true,
}

// readHeader parses the JOSE header. JWT-SVID, section 2, allows only alg, kid and
// typ. That excludes crit, and jwk, jku, x5c and x5u, with which a token would
// choose its own key.
func (t *token) readHeader(raw []byte) error {
	header, err := members(raw)
	if err != nil {
		return jwtFailure(CauseMalformed, "the header of the JWT-SVID "+err.Error())
	}
	for name := range header {
		if name != "alg" && name != "kid" && name != "typ" {
			return jwtFailure(CauseMalformed, "the header of the JWT-SVID may have only alg, kid and typ (JWT-SVID, section 2)")
		}
	}
	if t.alg = text(header["alg"]); !algorithms[t.alg] {
		return jwtFailure(CauseAlgorithm, "sign the JWT-SVID with RS256, RS384, RS512, ES256, ES384, ES512, PS256, PS384 or PS512 (JWT-SVID, section 2.1)")
	}
	if typ, ok := header["typ"]; ok && text(typ) != "JWT" && text(typ) != "JOSE" {
		return jwtFailure(CauseMalformed, "the typ of the JWT-SVID must be JWT or JOSE, or absent (JWT-SVID, section 2.3)")
	}
	if t.kid = text(header["kid"]); t.kid == "" {
		return jwtFailure(CauseMalformed, "the header of the JWT-SVID has no kid: it must name the signing key")
	}
	return nil
}

func (t *token) readClaims(raw []byte) error {
	claims, err := members(raw)
	if err != nil {
		return jwtFailure(CauseMalformed, "the payload of the JWT-SVID "+err.Error())
	}
	// The broker does not use iss and jti, but go-jose rejects other types than
	// strings. Without this check the error would blame the signature.
	for _, name := range []string{"iss", "jti"} {
		if raw, ok := claims[name]; ok && raw[0] != '"' {
			return jwtFailure(CauseMalformed, "the "+name+" of the JWT-SVID is not a string (RFC 7519, section 4.1)")
		}
	}
	if err := t.readSubject(claims["sub"]); err != nil {
		return err
	}
	if err := t.readAudience(claims["aud"]); err != nil {
		return err
	}
	return t.readTimes(claims)
}

// readSubject parses the SPIFFE ID in sub (JWT-SVID, section 3.1).
func (t *token) readSubject(raw json.RawMessage) error {
	id, err := workloadID(text(raw))
	if err != nil {
		return jwtFailure(CauseSPIFFEID, "the sub of the JWT-SVID "+err.Error())
	}
	t.id = id
	return nil
}

// readAudience requires exactly one audience. The specification (section 3.2)
// only recommends it, but any other audience could replay the token here.
func (t *token) readAudience(raw json.RawMessage) error {
	t.audience = text(raw)
	var list []string
	if len(raw) > 0 && raw[0] == '[' && json.Unmarshal(raw, &list) == nil && len(list) == 1 {
		t.audience = list[0]
	}
	if t.audience == "" {
		return jwtFailure(CauseAudience, "the JWT-SVID must have exactly one audience: fetch one for the broker's audience alone")
	}
	return nil
}

func (t *token) readTimes(claims map[string]json.RawMessage) error {
	exp, err := seconds(claims["exp"])
	if err != nil || exp.IsZero() {
		return jwtFailure(CauseMalformed, "the JWT-SVID needs an exp in whole seconds (JWT-SVID, section 3.3)")
	}
	t.expires = exp
	for _, name := range []string{"nbf", "iat"} {
		at, err := seconds(claims[name])
		if err != nil {
			return jwtFailure(CauseMalformed, "the "+name+" of the JWT-SVID must be in whole seconds (RFC 7519, section 2)")
		}
		if at.After(t.notBefore) {
			t.notBefore = at
		}
	}
	return nil
}

// seconds parses a NumericDate (RFC 7519, section 2) that is an integer, because
// parsers round fractions and exponents differently. It returns the zero time if
// raw is nil.
func seconds(raw json.RawMessage) (time.Time, error) {
	if raw == nil {
		return time.Time{}, nil
	}
	n, err := strconv.ParseUint(string(raw), 10, 40)
	if err != nil {
		return time.Time{}, err
	}
	return time.Unix(int64(n), 0), nil
}

// text returns the value of a JSON string, or "" for any other JSON.
func text(raw json.RawMessage) string {
	var s string
	if len(raw) == 0 || raw[0] != '"' || json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

// Errors of members. They must not quote the input, which may be a secret.
var (
	errNotObject = errors.New("is not a JSON object")
	errDuplicate = errors.New("has a member twice (RFC 7519, section 4)")
	errTooDeep   = errors.New("is nested too deeply")
)

// maxDepth limits the nesting of claims.
const maxDepth = 16

// members returns the members of a JSON object. It rejects duplicate members at
// every depth, because parsers disagree on which one counts.
func members(raw []byte) (map[string]json.RawMessage, error) {
	if !utf8.Valid(raw) {
		return nil, errNotObject
	}
	return object(raw, maxDepth)
}

func object(raw []byte, depth int) (map[string]json.RawMessage, error) {
	if depth == 0 {
		return nil, errTooDeep
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if first, err := dec.Token(); err != nil || first != json.Delim('{') {
		return nil, errNotObject
	}
	found := map[string]json.RawMessage{}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, errNotObject
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, errNotObject
		}
		if _, twice := found[name.(string)]; twice {
			return nil, errDuplicate
		}
		if err := distinct(value, depth-1); err != nil {
			return nil, err
		}
		found[name.(string)] = value
	}
	if _, err := dec.Token(); err != nil {
		return nil, errNotObject
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errNotObject
	}
	return found, nil
}

// distinct returns an error if an object in raw has duplicate members.
func distinct(raw json.RawMessage, depth int) error {
	if depth == 0 {
		return errTooDeep
	}
	switch raw[0] {
	case '{':
		_, err := object(raw, depth)
		return err
	case '[':
		var list []json.RawMessage
		if err := json.Unmarshal(raw, &list); err != nil {
			return errNotObject
		}
		for _, value := range list {
			if err := distinct(value, depth-1); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxID is the longest SPIFFE ID, in bytes (SPIFFE-ID, section 2.3).
const maxID = 2048

// workloadID parses the SPIFFE ID of a workload. An ID without a path belongs to
// the trust domain's authorities.
func workloadID(s string) (spiffeid.ID, error) {
	id, err := spiffeid.FromString(s)
	switch {
	case err != nil:
		return spiffeid.ID{}, errors.New("is not a SPIFFE ID, such as spiffe://acme.test/agent/triage")
	case id.Path() == "":
		return spiffeid.ID{}, errors.New("names a trust domain, not a workload: a path is missing")
	case len(s) > maxID || len(id.TrustDomain().Name()) > 255:
		return spiffeid.ID{}, errors.New("is longer than a SPIFFE ID may be (SPIFFE-ID, section 2.3)")
	}
	return id, nil
}
