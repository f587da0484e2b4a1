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
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"accessbroker.internal/internal/strictjson"
)

// SignatureFacts are a complete WebAuthn assertion (Web Authentication Level 3,
// section 7.2), so that an auditor can verify it offline at any time.
type SignatureFacts struct {
	AuthenticatorData []byte
	ClientData        []byte // JSON
	Credential        []byte // id of the passkey
	Nonce             Digest // chosen by the broker; part of the challenge
	Signature         []byte
}

// PasskeyFacts describe a passkey. It belongs to the record's subject, or to the
// caller if the record has no subject.
type PasskeyFacts struct {
	Counts     time.Time // of an enrolment: when its signatures begin to count
	Credential []byte    // its id
	Public     []byte    // its public key, a SubjectPublicKeyInfo in DER (RFC 5280)
	RP         string    // relying party id: the host of the broker's pages or a parent domain
}

// PasskeyWait is the time from the enrolment of a passkey until its signatures
// count. It gives people time to notice a passkey that another person enrolled in
// their name. A voucher by a person whose own passkey counts ends the wait.
const PasskeyWait = 24 * time.Hour

// Domain prefixes separate the challenges from each other and from other hashes.
const (
	approvalDomain = "accessbroker/approval/v1\n"
	reviewDomain   = "accessbroker/review/v1\n"
	passkeyDomain  = "accessbroker/passkey/v1\n"

	assessmentDomain = "accessbroker/assessment/v1\n"
)

// Challenge returns what a person's passkey signs for a vote: SHA-256 over the
// domain prefix and the canonical JSON (RFC 8785) of the request's id and digest,
// the vote and the broker's nonce.
func (f *ApprovalFacts) Challenge(person, request string, nonce Digest) Digest {
	return f.challenge(approvalDomain, person, request, nonce)
}

// ReviewChallenge returns what a person's passkey signs for a verdict on a
// break-glass use. It differs from Challenge in the prefix, so that the signature
// of a vote is not valid for a verdict.
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

// Challenge returns what the voucher's passkey signs to vouch for this passkey of
// another person.
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

// AssessmentChallenge returns what the assessor's passkey signs.
func (f *SupplierFacts) AssessmentChallenge(person string, nonce Digest) Digest {
	o := NewObject().
		Hex("answers", f.Answers).
		Hex("digest", f.Digest).
		Hex("evidence", f.Evidence).
		Hex("nonce", nonce).
		String("person", person).
		String("risk", f.Risk).
		String("supplier", f.Name).
		String("until", f.Until.UTC().Format(time.RFC3339))
	return sha256.Sum256(append([]byte(assessmentDomain), o.Bytes()...))
}

// The layout of authenticator data (section 6.1): hash of the relying party id,
// flags, signature counter.
const (
	flagPresent  = 1 << 0
	flagVerified = 1 << 2
	flagsAt      = sha256.Size
	counterAt    = flagsAt + 1
	leastData    = counterAt + 4
)

// Counter returns the authenticator's signature counter. Zero means that the
// authenticator keeps no counter.
func (s *SignatureFacts) Counter() uint32 {
	if len(s.AuthenticatorData) < leastData {
		return 0
	}
	return binary.BigEndian.Uint32(s.AuthenticatorData[counterAt:])
}

// Verify returns nil if the passkey with this public key signed the challenge for
// the relying party, with user verification.
func (s *SignatureFacts) Verify(challenge Digest, public []byte, rp string) error {
	client, err := ParseClientData(s.ClientData)
	if err != nil {
		return err
	}
	home := sha256.Sum256([]byte(rp))
	switch {
	case client.Type != "webauthn.get":
		return errors.New("it is not a WebAuthn assertion")
	case !bytes.Equal(client.Challenge, challenge[:]):
		return errors.New("it signs something else")
	case client.CrossOrigin || !originOf(client.Origin, rp):
		return fmt.Errorf("it was made on another site than %s", rp)
	case len(s.AuthenticatorData) < leastData || !bytes.Equal(s.AuthenticatorData[:flagsAt], home[:]):
		return fmt.Errorf("it was made for another site than %s", rp)
	case s.AuthenticatorData[flagsAt]&flagPresent == 0 || s.AuthenticatorData[flagsAt]&flagVerified == 0:
		return errors.New("the authenticator did not verify its user")
	}
	hash := sha256.Sum256(s.ClientData)
	return verifySignature(public, append(bytes.Clone(s.AuthenticatorData), hash[:]...), s.Signature)
}

// ClientData is what a browser adds to a WebAuthn signature (Web Authentication Level
// 3, section 5.8.1).
type ClientData struct {
	Type        string
	Challenge   []byte
	Origin      string
	CrossOrigin bool
}

// ParseClientData parses client data as strictly as browsers write it: parsers must not
// read what was signed differently.
func ParseClientData(raw []byte) (c ClientData, err error) {
	members, err := strictjson.Object(raw, 8)
	if err != nil {
		return c, fmt.Errorf("its client data %w", err)
	}
	kind, ok1 := strictjson.Text(members["type"])
	challenge, ok2 := strictjson.Text(members["challenge"])
	origin, ok3 := strictjson.Text(members["origin"])
	c = ClientData{Type: kind, Origin: origin}
	switch cross := string(members["crossOrigin"]); {
	case !ok1 || !ok2 || !ok3 || cross != "" && cross != "true" && cross != "false":
		return ClientData{}, errors.New("its client data lacks type, challenge or origin, or has one of another type")
	default:
		c.CrossOrigin = cross == "true"
	}
	c.Challenge, err = base64.RawURLEncoding.Strict().DecodeString(challenge)
	if err != nil || strings.ContainsAny(challenge, "\r\n") {
		return ClientData{}, errors.New("the challenge in its client data is not base64url")
	}
	return c, nil
}

// originOf reports whether an origin, in the one spelling of RFC 6454, section 6.2,
// belongs to the relying party: its host or a subdomain.
func originOf(origin, rp string) bool {
	u, err := url.Parse(origin)
	if err != nil || rp == "" || u.Scheme != "https" && (u.Scheme != "http" || u.Hostname() != "localhost") {
		return false
	}
	if u.Scheme+"://"+u.Host != origin || strings.ToLower(u.Host) != u.Host {
		return false
	}
	return u.Hostname() == rp || strings.HasSuffix(u.Hostname(), "."+rp)
}

var errSignature = errors.New("its signature is not valid")

// verifySignature verifies ES256, EdDSA or RS256 (RFC 9053, section 2; RFC 8812,
// section 2), depending on the type of the key.
func verifySignature(public, message, signature []byte) error {
	parsed, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		return errors.New("its public key is not readable")
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
