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

// MaxTokenSize bounds a JWT-SVID, in bytes. SPIRE's are about 700.
const MaxTokenSize = 8 << 10

// A token is what a JWT-SVID says. Nothing of it is believed before its
// signature was checked.
type token struct {
	alg, kid  string
	id        spiffeid.ID
	audience  string
	expires   time.Time
	notBefore time.Time // the later of nbf and iat; zero if there is neither
}

// refused makes a Failure of a JWT-SVID.
func jwtFailure(cause Cause, detail string) error {
	return &Failure{broker.MethodJWTSVID, cause, detail}
}

// parseToken reads a JWT-SVID as strictly as its specification allows. go-jose
// parses it a second time to check the signature, so whatever two parsers
// could read in two ways is refused here: duplicate members, unknown headers,
// sloppy base64, numbers that are not integers.
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

// split takes the compact serialization apart; JWT-SVID, section 5.1, allows
// no other. (The JSON serializations could carry several signatures.)
func split(compact string) (header, claims []byte, err error) {
	parts := strings.Split(compact, ".")
	if len(parts) != 3 {
		return nil, nil, jwtFailure(CauseMalformed, "send the JWT-SVID in JWS compact serialization: three parts with a dot between them, one signature")
	}
	var decoded [3][]byte
	for i, part := range parts {
		// Strict base64url without padding (RFC 7515, section 2): a token
		// has one spelling. Go's decoder skips line ends; we don't.
		decoded[i], err = base64.RawURLEncoding.Strict().DecodeString(part)
		if err != nil || len(part) == 0 || strings.ContainsAny(part, "\r\n") {
			return nil, nil, jwtFailure(CauseMalformed, "a part of the JWT-SVID is not base64url (RFC 7515, section 2), or missing: see whether it was cut off or changed on its way")
		}
	}
	return decoded[0], decoded[1], nil
}

// algorithms of JWT-SVID, section 2.1. There is no none and no HMAC.
var algorithms = map[string]bool{
	"RS256": true, "RS384": true, "RS512": true,
	"ES256": true, "ES384": true, "ES512": true,
	"PS256": true, "PS384": true, "PS512": true,
}

// readHeader reads the JOSE header. Section 2 of JWT-SVID allows alg, kid and
// typ, and no other: so no crit, and no jwk, jku, x5c or x5u, with which a
// token would bring its own key.
func (t *token) readHeader(raw []byte) error {
	header, err := members(raw)
	if err != nil {
		return jwtFailure(CauseMalformed, "the header of the JWT-SVID "+err.Error())
	}
	for name := range header {
		if name != "alg" && name != "kid" && name != "typ" {
			return jwtFailure(CauseMalformed, "the header of the JWT-SVID may hold alg, kid and typ only (JWT-SVID, section 2)")
		}
	}
	if t.alg = text(header["alg"]); !algorithms[t.alg] {
		return jwtFailure(CauseAlgorithm, "sign the JWT-SVID with RS256, RS384, RS512, ES256, ES384, ES512, PS256, PS384 or PS512 (JWT-SVID, section 2.1)")
	}
	if typ, ok := header["typ"]; ok && text(typ) != "JWT" && text(typ) != "JOSE" {
		return jwtFailure(CauseMalformed, "the typ of a JWT-SVID is JWT or JOSE, if there is one (JWT-SVID, section 2.3)")
	}
	if t.kid = text(header["kid"]); t.kid == "" {
		return jwtFailure(CauseMalformed, "the JWT-SVID names no key: its header needs a kid")
	}
	return nil
}

func (t *token) readClaims(raw []byte) error {
	claims, err := members(raw)
	if err != nil {
		return jwtFailure(CauseMalformed, "the payload of the JWT-SVID "+err.Error())
	}
	// Nobody here reads iss and jti, but go-jose refuses what is no text: say
	// so, and don't blame the signature.
	for _, name := range []string{"iss", "jti"} {
		if raw, ok := claims[name]; ok && raw[0] != '"' {
			return jwtFailure(CauseMalformed, "the "+name+" of the JWT-SVID is not text (RFC 7519, section 4.1)")
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

// readSubject reads who it is about (JWT-SVID, section 3.1).
func (t *token) readSubject(raw json.RawMessage) error {
	id, err := workloadID(text(raw))
	if err != nil {
		return jwtFailure(CauseSPIFFEID, "the sub of the JWT-SVID "+err.Error())
	}
	t.id = id
	return nil
}

// readAudience wants one audience. The specification (section 3.2) only
// recommends that; but who else a token is for could present it here.
func (t *token) readAudience(raw json.RawMessage) error {
	t.audience = text(raw)
	var list []string
	if len(raw) > 0 && raw[0] == '[' && json.Unmarshal(raw, &list) == nil && len(list) == 1 {
		t.audience = list[0]
	}
	if t.audience == "" {
		return jwtFailure(CauseAudience, "fetch a JWT-SVID for exactly one audience, the broker's")
	}
	return nil
}

func (t *token) readTimes(claims map[string]json.RawMessage) error {
	exp, err := seconds(claims["exp"])
	if err != nil || exp.IsZero() {
		return jwtFailure(CauseMalformed, "the JWT-SVID needs an exp, in whole seconds (JWT-SVID, section 3.3)")
	}
	t.expires = exp
	for _, name := range []string{"nbf", "iat"} {
		at, err := seconds(claims[name])
		if err != nil {
			return jwtFailure(CauseMalformed, "the "+name+" of the JWT-SVID is not in whole seconds")
		}
		if at.After(t.notBefore) {
			t.notBefore = at
		}
	}
	return nil
}

// seconds reads a NumericDate (RFC 7519, section 2) that is an integer; zero
// if there is none. Fractions and exponents round differently in different
// parsers.
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

// text gives a JSON string, or "" for anything else.
func text(raw json.RawMessage) string {
	var s string
	if len(raw) == 0 || raw[0] != '"' || json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

// What is wrong with a JSON object. None of these repeats what stood in it.
var (
	errNotObject = errors.New("is not a JSON object")
	errDuplicate = errors.New("has a member twice (RFC 7519, section 4)")
	errTooDeep   = errors.New("is nested too deeply")
)

// maxDepth bounds how deeply claims may be nested.
const maxDepth = 16

// members gives the members of a JSON object. No object in it, however deep,
// may have a member twice: parsers disagree on which one counts.
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

// distinct looks for members that stand twice in a value.
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

// maxID bounds a SPIFFE ID, in bytes (SPIFFE-ID, section 2.3).
const maxID = 2048

// workloadID reads the SPIFFE ID of a workload: one with a path (a trust
// domain alone is that of its authorities).
func workloadID(s string) (spiffeid.ID, error) {
	id, err := spiffeid.FromString(s)
	switch {
	case err != nil:
		return spiffeid.ID{}, errors.New("is not a SPIFFE ID, such as spiffe://acme.test/agent/triage")
	case id.Path() == "":
		return spiffeid.ID{}, errors.New("names a trust domain, not a workload: a path is missing")
	case len(s) > maxID || len(id.TrustDomain().Name()) > 255:
		return spiffeid.ID{}, errors.New("is too long a SPIFFE ID (SPIFFE-ID, section 2.3)")
	}
	return id, nil
}
