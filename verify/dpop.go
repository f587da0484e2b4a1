package verify

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"net/url"
	"strings"
	"sync"
	"time"
)

// A proof is a DPoP proof that is valid if it was not used before.
type proof struct {
	id    [32]byte // of its key and its jti
	until time.Time
}

// maxProofID is the length of the longest jti of a proof.
const maxProofID = 512

// checkProof checks a DPoP proof for a token that is bound to the key with the thumbprint
// (RFC 9449, section 4.3; the numbers are those of its list).
func (v *Verifier) checkProof(key, token string, p Presentation, now time.Time) (*proof, error) {
	if p.Proof == "" {
		return nil, badProof("the header DPoP is missing")
	}
	j, err := parseJWS(p.Proof, maxToken, proofAlgorithms) // 2 and 5
	if err != nil {
		return nil, badProof("%v", err)
	}
	if j.typ != "dpop+jwt" { // 4
		return nil, badProof("its typ is not dpop+jwt")
	}
	jwk, ok := j.header.get("jwk")
	if !ok || jwk.kind != '{' {
		return nil, badProof("it has no key")
	}
	public, err := publicKey(&jwk) // 7
	if err != nil {
		return nil, badProof("its key is %v", err)
	}
	if err := j.verify(public); err != nil { // 6
		return nil, badProof("%v", err)
	}
	claims, err := parseObject(j.claims)
	if err != nil {
		return nil, badProof("its claims are not strict JSON")
	}
	if err := v.checkProofClaims(&claims, token, p, now); err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare([]byte(thumbprint(&jwk)), []byte(key)) != 1 { // 12
		return nil, invalid("it is bound to another key than that of the DPoP proof")
	}
	iat, _ := claims.number("iat")
	return &proof{
		id:    sha256.Sum256([]byte(key + "\n" + claims.textOf("jti"))),
		until: time.Unix(iat, 0).Add(v.cfg.DPoP.Lasts + 2*v.leeway),
	}, nil
}

func (v *Verifier) checkProofClaims(claims *value, token string, p Presentation, now time.Time) error {
	jti, htu := claims.textOf("jti"), claims.textOf("htu")
	iat, hasTime := claims.number("iat")
	if jti == "" || len(jti) > maxProofID || htu == "" || !hasTime { // 3
		return badProof("jti, htm, htu and iat are required")
	}
	if claims.textOf("htm") != p.Method { // 8
		return badProof("it is for another method")
	}
	if !sameURL(htu, p.URL) { // 9
		return badProof("it is for another URL")
	}
	if v.nonces != nil && !v.nonces.valid(claims.textOf("nonce"), now) { // 10
		return ErrUseNonce
	}
	made := time.Unix(iat, 0) // 11
	if made.After(now.Add(v.leeway)) || !now.Before(made.Add(v.cfg.DPoP.Lasts+v.leeway)) {
		return badProof("it is too old, or from the future")
	}
	sum := sha256.Sum256([]byte(token)) // 12
	if subtle.ConstantTimeCompare([]byte(claims.textOf("ath")), []byte(base64url.EncodeToString(sum[:]))) != 1 {
		return badProof("it is for another token")
	}
	return nil
}

// sameURL compares two URLs without query and fragment, after syntax-based and scheme-based
// normalization (RFC 3986, sections 6.2.2 and 6.2.3).
func sameURL(a, b string) bool {
	one, ok := normalURL(a)
	other, too := normalURL(b)
	return ok && too && one == other
}

func normalURL(text string) (string, bool) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.Opaque != "" {
		return "", false
	}
	scheme, host := strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	switch scheme {
	case "https":
		host = strings.TrimSuffix(host, ":443")
	case "http":
		host = strings.TrimSuffix(host, ":80")
	default:
		return "", false
	}
	path := u.EscapedPath()
	if !strings.Contains(path, "//") {
		path = u.JoinPath().EscapedPath() // without dot segments; it would also join slashes
	}
	if path == "" {
		path = "/"
	}
	if host = strings.TrimSuffix(host, ":"); host == "" {
		return "", false
	}
	return scheme + "://" + host + normalEscapes(path), true
}

// normalEscapes decodes the escapes of unreserved characters, and writes the others in upper
// case.
func normalEscapes(path string) string {
	if !strings.Contains(path, "%") {
		return path
	}
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] != '%' || i+2 >= len(path) {
			b.WriteByte(path[i])
			continue
		}
		if c, err := url.PathUnescape(path[i : i+3]); err == nil && isUnreserved(c[0]) {
			b.WriteByte(c[0])
		} else {
			b.WriteString(strings.ToUpper(path[i : i+3]))
		}
		i += 2
	}
	return b.String()
}

func isUnreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

// useProof uses a proof up.
func (v *Verifier) useProof(ctx context.Context, p *proof) error {
	first, err := v.cfg.DPoP.Replays.Use(ctx, p.id, p.until)
	if err != nil {
		return unavailable("remembering the DPoP proof", err)
	}
	if !first {
		return badProof("it was used before")
	}
	return nil
}

// maxProofs bounds the proofs in memory. Each takes about 100 bytes.
const maxProofs = 1 << 17

// replays remembers proofs in memory. Two generations of a duration hold them: an old proof
// is forgotten with its generation. When they are full, calls are refused: forgetting a proof
// that is still valid would allow its replay.
type replays struct {
	now func() time.Time

	mu           sync.Mutex
	newer, older map[[32]byte]time.Time
	longest      time.Time // when the last proof of newer may be forgotten
	forgettable  time.Time // and the last one of older
}

func newReplays(now func() time.Time) *replays {
	return &replays{now: now, newer: map[[32]byte]time.Time{}}
}

// Use implements Replays.
func (r *replays) Use(_ context.Context, id [32]byte, until time.Time) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if !now.Before(r.forgettable) { // all of the older ones have expired
		r.older, r.forgettable = r.newer, r.longest
		r.newer, r.longest = map[[32]byte]time.Time{}, time.Time{}
	}
	for _, known := range []map[[32]byte]time.Time{r.newer, r.older} {
		if at, ok := known[id]; ok && now.Before(at) {
			return false, nil
		}
	}
	if len(r.newer)+len(r.older) >= maxProofs {
		return false, errTooManyProofs
	}
	r.newer[id] = until
	if until.After(r.longest) {
		r.longest = until
	}
	return true, nil
}

var errTooManyProofs = ErrUnavailable

// nonces are nonces of the service that need no memory: the time, and its MAC.
type nonces struct{ key []byte }

const (
	nonceLasts = 5 * time.Minute
	nonceMAC   = 16 // bytes
)

// next returns a nonce for now. It changes once a minute, so that answers can be compared.
func (n *nonces) next(now time.Time) string {
	at := binary.BigEndian.AppendUint64(nil, uint64(now.Unix()/60*60))
	return base64url.EncodeToString(append(at, n.mac(at)...))
}

func (n *nonces) mac(at []byte) []byte {
	h := hmac.New(sha256.New, n.key)
	h.Write([]byte("access-broker/verify/nonce\n"))
	h.Write(at)
	return h.Sum(nil)[:nonceMAC]
}

func (n *nonces) valid(nonce string, now time.Time) bool {
	b, err := base64url.DecodeString(nonce)
	if err != nil || len(b) != 8+nonceMAC || !hmac.Equal(b[8:], n.mac(b[:8])) {
		return false
	}
	age := now.Sub(time.Unix(int64(binary.BigEndian.Uint64(b[:8])), 0))
	return age >= -time.Minute && age < nonceLasts
}
