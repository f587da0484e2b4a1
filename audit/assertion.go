package audit

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// SignatureFacts are what a passkey signed: a WebAuthn assertion (Web
// Authentication Level 3, section 7.2), whole, so that it can be verified
// whenever somebody wants to.
type SignatureFacts struct {
	AuthenticatorData []byte
	ClientData        []byte // JSON
	Credential        []byte // the passkey's id
	Nonce             Digest // the broker's, in the challenge
	Signature         []byte
}

// PasskeyFacts name a passkey, and say from when on its signatures count. It is
// the subject's, or if there is none the caller's.
type PasskeyFacts struct {
	Counts     time.Time // of an enrolment
	Credential []byte    // its id
	Public     []byte    // its public key, a SubjectPublicKeyInfo in DER (RFC 5280)
	RP         string    // the relying party's id: the host, or a parent, of the broker's pages
}

// PasskeyWait is how long a passkey waits until its signatures count, unless
// somebody whose own counts vouches for it: time for its person to notice one
// that is not theirs.
const PasskeyWait = 24 * time.Hour

// Domains that separate what passkeys sign.
const (
	approvalDomain = "accessbroker/approval/v1\n"
	reviewDomain   = "accessbroker/review/v1\n"
	passkeyDomain  = "accessbroker/passkey/v1\n"
)

// Challenge is what a person's passkey signs when it approves: SHA-256 over a
// prefix of its own and the canonical JSON (RFC 8785) of the request, what
// they saw of it, what they say, and the broker's nonce.
func (f *ApprovalFacts) Challenge(person, request string, nonce Digest) Digest {
	return f.challenge(approvalDomain, person, request, nonce)
}

// ReviewChallenge is what it signs for a verdict on a broken glass: the same
// under another prefix, so that a signature of one is none of the other.
func (f *ApprovalFacts) ReviewChallenge(person, request string, nonce Digest) Digest {
	return f.challenge(reviewDomain, person, request, nonce)
}

func (f *ApprovalFacts) challenge(domain, person, request string, nonce Digest) Digest {
	o := NewObject().
		Hex("comment", f.Comment).
		String("decision", f.Decision).
		Hex("digest", f.Digest).
		Seconds("duration", f.Duration).
		Hex("nonce", nonce).
		String("person", person).
		String("request", request).
		StringList("scopes", f.Scopes).
		Seconds("ttl", f.TTL)
	return sha256.Sum256(append([]byte(domain), o.Bytes()...))
}

// Challenge is what a person's passkey signs when they vouch for somebody
// else's, this one.
func (f *PasskeyFacts) Challenge(voucher, person string, nonce Digest) Digest {
	o := NewObject().
		String("credential", base64.RawURLEncoding.EncodeToString(f.Credential)).
		Hex("nonce", nonce).
		String("person", person).
		String("public", base64.RawURLEncoding.EncodeToString(f.Public)).
		String("rp", f.RP).
		String("voucher", voucher)
	return sha256.Sum256(append([]byte(passkeyDomain), o.Bytes()...))
}

// Authenticator data: the hash of the relying party's id, flags, a counter
// (section 6.1).
const (
	flagPresent  = 1 << 0
	flagVerified = 1 << 2
	flagsAt      = sha256.Size
	counterAt    = flagsAt + 1
	leastData    = counterAt + 4
)

// Counter is how often the authenticator says that it has signed; zero: it does
// not count.
func (s *SignatureFacts) Counter() uint32 {
	if len(s.AuthenticatorData) < leastData {
		return 0
	}
	return binary.BigEndian.Uint32(s.AuthenticatorData[counterAt:])
}

// Verify says nil if the passkey with this public key signed the challenge for
// the relying party, and had made sure who its user is; or what does not hold.
func (s *SignatureFacts) Verify(challenge Digest, public []byte, rp string) error {
	var client struct {
		Type, Challenge, Origin string
		CrossOrigin             bool
	}
	if err := json.Unmarshal(s.ClientData, &client); err != nil {
		return errors.New("what the browser says of it is not JSON")
	}
	signed, err := base64.RawURLEncoding.DecodeString(client.Challenge)
	home := sha256.Sum256([]byte(rp))
	switch {
	case client.Type != "webauthn.get":
		return errors.New("it is no assertion of a passkey")
	case err != nil || !bytes.Equal(signed, challenge[:]):
		return errors.New("it signs something else")
	case client.CrossOrigin || !originOf(client.Origin, rp):
		return fmt.Errorf("it was made on another site than %s", rp)
	case len(s.AuthenticatorData) < leastData || !bytes.Equal(s.AuthenticatorData[:flagsAt], home[:]):
		return fmt.Errorf("it was made for another site than %s", rp)
	case s.AuthenticatorData[flagsAt]&flagPresent == 0 || s.AuthenticatorData[flagsAt]&flagVerified == 0:
		return errors.New("the authenticator did not make sure who its user is")
	}
	hash := sha256.Sum256(s.ClientData)
	return verifySignature(public, append(bytes.Clone(s.AuthenticatorData), hash[:]...), s.Signature)
}

// originOf says whether an origin is of the relying party: its host, or one
// below it.
func originOf(origin, rp string) bool {
	u, err := url.Parse(origin)
	if err != nil || rp == "" || u.Scheme != "https" && (u.Scheme != "http" || u.Hostname() != "localhost") {
		return false
	}
	return u.Hostname() == rp || strings.HasSuffix(u.Hostname(), "."+rp)
}

var errSignature = errors.New("its signature does not hold")

// verifySignature verifies ES256, EdDSA and RS256 (RFC 9053, section 2; RFC
// 8812, section 2), by what the key is.
func verifySignature(public, message, signature []byte) error {
	parsed, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		return errors.New("its public key can't be read")
	}
	hash := sha256.Sum256(message)
	holds := false
	switch key := parsed.(type) {
	case *ecdsa.PublicKey:
		holds = key.Curve.Params().BitSize == 256 && ecdsa.VerifyASN1(key, hash[:], signature)
	case ed25519.PublicKey:
		holds = ed25519.Verify(key, message, signature)
	case *rsa.PublicKey:
		holds = key.N.BitLen() >= 2048 && rsa.VerifyPKCS1v15(key, crypto.SHA256, hash[:], signature) == nil
	}
	if !holds {
		return errSignature
	}
	return nil
}
