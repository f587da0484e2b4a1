package attest

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/strictjson"
)

// MaxTokenSize is the largest JWT-SVID, in bytes. SPIRE's have about 700.
const MaxTokenSize = 8 << 10

// A token holds the parsed fields of a JWT-SVID. They are not trustworthy until
// verify has checked the signature.
type token struct {
	alg, kid  string
	id        spiffeid.ID
	audience  string
	expires   time.Time // in whole seconds
	notBefore time.Time // the later of nbf and iat; zero if there is neither

	signed    string // what the signature covers: header and claims, encoded
	signature []byte
}

// jwtFailure returns a Failure for a JWT-SVID.
func jwtFailure(cause Cause, detail string) error {
	return &Failure{broker.MethodJWTSVID, cause, detail}
}

// parseToken parses a JWT-SVID as strictly as the specification allows. A resource
// server or a proxy may parse the same token. parseToken therefore rejects
// everything that two parsers may read differently: duplicate members, unknown
// header fields, and base64 with padding or line ends.
func parseToken(compact string) (token, error) {
	var t token
	header, claims, err := t.split(compact)
	if err != nil {
		return token{}, err
	}
	if err := t.readHeader(header); err != nil {
		return token{}, err
	}
	if err := t.readClaims(claims); err != nil {
		return token{}, err
	}
	return t, nil
}

// IsJWTSVID reports whether a token has the form of a JWT-SVID, also if it is not valid.
func IsJWTSVID(compact string) bool {
	_, err := parseToken(compact)
	return len(compact) <= MaxTokenSize && err == nil
}

// split decodes the compact serialization, the only one that JWT-SVID, section
// 5.1, allows. The JSON serializations may carry several signatures.
func (t *token) split(compact string) (header, claims []byte, err error) {
	first, last := strings.IndexByte(compact, '.'), strings.LastIndexByte(compact, '.')
	if first == last || strings.IndexByte(compact[first+1:last], '.') >= 0 {
		return nil, nil, jwtFailure(CauseMalformed, "the JWT-SVID is not in JWS compact serialization: send three parts with a dot between them")
	}
	t.signed = compact[:last]
	var decoded [3][]byte
	for i, part := range [...]string{compact[:first], compact[first+1 : last], compact[last+1:]} {
		// RFC 7515, section 2: base64url without padding. Strict and the check for
		// line ends, which Go's decoder skips, leave one encoding per token.
		decoded[i], err = base64.RawURLEncoding.Strict().DecodeString(part)
		if err != nil || len(part) == 0 || strings.ContainsAny(part, "\r\n") {
			return nil, nil, jwtFailure(CauseMalformed, "a part of the JWT-SVID is empty or not base64url (RFC 7515, section 2): check whether the token was truncated or changed in transit")
		}
	}
	t.signature = decoded[2]
	return decoded[0], decoded[1], nil
}

// algorithms lists the algorithms of JWT-SVID, section 2.1. It must never contain
// none or HMAC (RFC 8725, section 2.1).
var algorithms = []string{"RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512"}

// maxDepth limits the nesting of claims.
const maxDepth = 16

// text returns the value of a JSON string, or "" for any other JSON.
func text(raw []byte) string {
	value, _ := strictjson.Text(raw)
	return value
}

// readHeader parses the JOSE header. JWT-SVID, section 2, allows only alg, kid and
// typ. That excludes crit, and jwk, jku, x5c and x5u, with which a token would
// choose its own key.
func (t *token) readHeader(raw []byte) error {
	header, err := strictjson.Members(raw, maxDepth)
	if err != nil {
		return jwtFailure(CauseMalformed, "the header of the JWT-SVID "+err.Error())
	}
	typ := "JWT"
	for _, m := range header {
		switch m.Name {
		case "alg":
			t.alg = text(m.Value)
		case "kid":
			t.kid = text(m.Value)
		case "typ":
			typ = text(m.Value)
		default:
			return jwtFailure(CauseMalformed, "the header of the JWT-SVID may have only alg, kid and typ (JWT-SVID, section 2)")
		}
	}
	if !slices.Contains(algorithms, t.alg) {
		return jwtFailure(CauseAlgorithm, "sign the JWT-SVID with RS256, RS384, RS512, ES256, ES384, ES512, PS256, PS384 or PS512 (JWT-SVID, section 2.1)")
	}
	if typ != "JWT" && typ != "JOSE" {
		return jwtFailure(CauseMalformed, "the typ of the JWT-SVID must be JWT or JOSE, or absent (JWT-SVID, section 2.3)")
	}
	if t.kid == "" {
		return jwtFailure(CauseMalformed, "the header of the JWT-SVID has no kid: it must name the signing key")
	}
	return nil
}

// claimSet holds the claims that the broker reads, as JSON. Absent ones are nil.
type claimSet struct{ sub, aud, exp, nbf, iat []byte }

func (t *token) readClaims(raw []byte) error {
	list, err := strictjson.Members(raw, maxDepth)
	if err != nil {
		return jwtFailure(CauseMalformed, "the payload of the JWT-SVID "+err.Error())
	}
	var c claimSet
	for _, m := range list {
		switch m.Name {
		case "sub":
			c.sub = m.Value
		case "aud":
			c.aud = m.Value
		case "exp":
			c.exp = m.Value
		case "nbf":
			c.nbf = m.Value
		case "iat":
			c.iat = m.Value
		case "iss", "jti":
			// The broker does not use them, but parsers differ on other types than
			// strings.
			if m.Value[0] != '"' {
				return jwtFailure(CauseMalformed, "the "+m.Name+" of the JWT-SVID is not a string (RFC 7519, section 4.1)")
			}
		}
	}
	if err := t.readSubject(c.sub); err != nil {
		return err
	}
	if err := t.readAudience(c.aud); err != nil {
		return err
	}
	return t.readTimes(c)
}

// readSubject parses the SPIFFE ID in sub (JWT-SVID, section 3.1).
func (t *token) readSubject(raw []byte) error {
	id, err := workloadID(text(raw))
	if err != nil {
		return jwtFailure(CauseSPIFFEID, "the sub of the JWT-SVID "+err.Error())
	}
	t.id = id
	return nil
}

// readAudience requires exactly one audience. The specification (section 3.2)
// only recommends it, but any other audience could replay the token here.
func (t *token) readAudience(raw []byte) error {
	t.audience = text(raw)
	if len(raw) > 0 && raw[0] == '[' {
		if list, _ := strictjson.Elements(raw); len(list) == 1 {
			t.audience = text(list[0])
		}
	}
	if t.audience == "" {
		return jwtFailure(CauseAudience, "the JWT-SVID must have exactly one audience: fetch one for the broker's audience alone")
	}
	return nil
}

// readTimes reads exp, nbf and iat. It rounds exp down to the second, to which leases
// and other parsers count. A token is never valid longer than its issuer said.
func (t *token) readTimes(c claimSet) error {
	exp, err := numericDate(c.exp)
	if err != nil {
		return jwtFailure(CauseMalformed, "the JWT-SVID needs an exp in seconds (JWT-SVID, section 3.3; RFC 7519, section 2)")
	}
	t.expires = exp.Truncate(time.Second)
	for _, claim := range []struct {
		name string
		raw  []byte
	}{{"nbf", c.nbf}, {"iat", c.iat}} {
		if claim.raw == nil {
			continue
		}
		at, err := numericDate(claim.raw)
		if err != nil {
			return jwtFailure(CauseMalformed, "the "+claim.name+" of the JWT-SVID must be in seconds (RFC 7519, section 2)")
		}
		if at.After(t.notBefore) {
			t.notBefore = at
		}
	}
	return nil
}

// workloadID parses the SPIFFE ID of a workload. An ID without a path belongs to
// the trust domain's authorities.
func workloadID(s string) (spiffeid.ID, error) {
	_, path, err := broker.ParseSPIFFEID(s)
	switch {
	case err != nil: // the error would quote the input
		return spiffeid.ID{}, errors.New("is not a SPIFFE ID, such as spiffe://acme.test/agent/triage")
	case path == "":
		return spiffeid.ID{}, errors.New("names a trust domain, not a workload: a path is missing")
	}
	return spiffeid.FromString(s) // for go-spiffe's type; it accepts every ID that broker does
}

// maxDate is the largest NumericDate, in the year 36812. No calculation with it
// overflows.
const maxDate = 1 << 40

var errNotDate = errors.New("not a time in seconds since 1970 (RFC 7519, section 2)")

// numericDate parses a NumericDate (RFC 7519, section 2), which may have a fraction.
func numericDate(raw []byte) (time.Time, error) {
	if len(raw) == 0 || raw[0] < '0' || raw[0] > '9' || !json.Valid(raw) {
		return time.Time{}, errNotDate
	}
	n, err := strconv.ParseFloat(string(raw), 64)
	if err != nil || n > maxDate {
		return time.Time{}, errNotDate
	}
	whole := int64(n)
	return time.Unix(whole, int64((n-float64(whole))*1e9)), nil
}
