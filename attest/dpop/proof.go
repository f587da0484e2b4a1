package dpop

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/attest/jwks"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/strictjson"
)

// Bounds, in bytes. A proof with an RSA key of 4,096 bits has about 2,000.
const (
	maxProof     = 4096
	maxSignature = 512 // of RSA with 4,096 bits
	maxID        = 256
	maxTarget    = 2048
	maxDepth     = 8
)

// A proof holds the parsed fields of a proof whose signature is valid: its sender has the
// key. Everything else in it must be compared with the request.
type proof struct {
	thumbprint audit.Digest // of the key
	id         string       // jti
	method     string       // htm
	target     string       // htu
	issued     time.Time    // iat
	nonce      string       // may be empty
	tokenHash  string       // ath; may be empty
}

// once names the proof. The key is part of the name, so that a client cannot spend the jti
// of another one.
func (p *proof) once() broker.SpentKey {
	h := sha256.New()
	h.Write([]byte("accessbroker/dpop/v1\n"))
	h.Write(p.thumbprint[:])
	h.Write([]byte(p.id))
	return broker.SpentKey(h.Sum(nil))
}

func errPart() error {
	return invalid("a part of the DPoP proof is empty or not base64url without padding (RFC 7515, section 2)")
}

// parse parses and verifies a proof (RFC 9449, section 4.2). It is as strict as the parser
// of JWT-SVIDs, and does not quote the proof in errors.
func (s *headers) parse(text string) (*proof, error) {
	if len(text) > maxProof {
		return nil, invalid("the DPoP proof is longer than " + strconv.Itoa(maxProof) + " bytes")
	}
	first, last := strings.IndexByte(text, '.'), strings.LastIndexByte(text, '.')
	if first == last || strings.IndexByte(text[first+1:last], '.') >= 0 || strings.ContainsAny(text, "\r\n") {
		return nil, invalid("the DPoP proof is not a JWT: three parts with dots between them (RFC 7515, section 3.1)")
	}
	var parts [2][]byte
	for i, part := range [...]string{text[first+1 : last], text[last+1:]} {
		var err error
		if parts[i], err = base64.RawURLEncoding.Strict().DecodeString(part); err != nil || part == "" {
			return nil, errPart()
		}
	}
	h, err := s.read(text[:first])
	if err != nil {
		return nil, err
	}
	if len(parts[1]) > maxSignature || h.key.Verify(h.algorithm, []byte(text[:last]), parts[1]) != nil {
		return nil, invalid("the signature of the DPoP proof does not fit its jwk")
	}
	s.keep(text[:first], h)
	p := &proof{thumbprint: h.thumbprint}
	return p, p.readClaims(parts[0])
}

// readHeader returns the algorithm and the key of a proof. Unknown header parameters have no
// effect, except crit, which demands one (RFC 7515, section 4.1.11).
func readHeader(raw []byte) (algorithm string, key jwks.Key, err error) {
	header, err := strictjson.Object(raw, maxDepth)
	if err != nil {
		return "", key, invalid("the header of the DPoP proof " + err.Error())
	}
	text := func(name string) string {
		value, _ := strictjson.Text(header[name])
		return value
	}
	algorithm = text("alg")
	switch _, critical := header["crit"]; {
	case critical:
		return "", key, invalid("the header of the DPoP proof has a critical extension (crit), and the broker knows none")
	case text("typ") != "dpop+jwt":
		return "", key, invalid("the typ of the DPoP proof is not dpop+jwt")
	case !slices.Contains(Algorithms(), algorithm):
		return "", key, invalid("the alg of the DPoP proof is not one of " + strings.Join(Algorithms(), ", "))
	case header["jwk"] == nil:
		return "", key, invalid("the header of the DPoP proof has no jwk")
	}
	if key, err = jwks.ParsePublic(header["jwk"]); err != nil {
		return "", key, invalid("the jwk of the DPoP proof is not a public key that the broker accepts: " + err.Error())
	}
	if !key.Allows(algorithm) {
		return "", key, invalid("the alg of the DPoP proof does not fit its jwk")
	}
	return algorithm, key, nil
}

func (p *proof) readClaims(raw []byte) error {
	claims, err := strictjson.Object(raw, maxDepth)
	if err != nil {
		return invalid("the payload of the DPoP proof " + err.Error())
	}
	for _, claim := range []struct {
		name     string
		into     *string
		most     int
		required bool
	}{
		{"jti", &p.id, maxID, true}, {"htm", &p.method, maxID, true}, {"htu", &p.target, maxTarget, true},
		{"nonce", &p.nonce, maxID, false}, {"ath", &p.tokenHash, maxID, false},
	} {
		value, present := claims[claim.name]
		if !present && !claim.required {
			continue
		}
		text, ok := strictjson.Text(value)
		if !ok || text == "" || len(text) > claim.most {
			return invalid("the " + claim.name + " of the DPoP proof is missing or not a string of 1 to " + strconv.Itoa(claim.most) + " bytes")
		}
		*claim.into = text
	}
	issued, ok := numericDate(claims["iat"])
	if !ok {
		return invalid("the iat of the DPoP proof is missing or not a time in seconds (RFC 7519, section 2)")
	}
	p.issued = issued
	return nil
}

// maxDate is the largest NumericDate, in the year 36812. No calculation with it overflows.
const maxDate = 1 << 40

// numericDate parses a NumericDate (RFC 7519, section 2), which may have a fraction.
func numericDate(raw json.RawMessage) (time.Time, bool) {
	if len(raw) == 0 || raw[0] < '0' || raw[0] > '9' {
		return time.Time{}, false
	}
	n, err := strconv.ParseFloat(string(raw), 64)
	if err != nil || n > maxDate {
		return time.Time{}, false
	}
	return time.UnixMilli(int64(n * 1000)), true
}
