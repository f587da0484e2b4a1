package attest

import (
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/protocol/webauthncose"
	"github.com/go-webauthn/webauthn/webauthn"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Passkeys enrols passkeys (Web Authentication Level 3, section 7.1). Package audit
// verifies their signatures, so that auditors can do so offline. It is safe for
// concurrent use.
type Passkeys struct {
	rp string
	w  *webauthn.WebAuthn
}

// NewPasskeys returns Passkeys for the relying party rp, a host name, with pages at
// origin. Both are normalized, because browsers compare them as hosts and the broker
// as texts.
func NewPasskeys(rp, origin string) (*Passkeys, error) {
	u, err := broker.NormalURL(origin)
	if err != nil {
		return nil, fmt.Errorf("preparing passkeys: the origin %q %w", origin, err)
	}
	rp = strings.ToLower(rp)
	if host := u.Hostname(); host != rp && !strings.HasSuffix(host, "."+rp) || rp == "" {
		return nil, fmt.Errorf("preparing passkeys: the relying party %q is not the host of %s or a suffix of it", rp, u)
	}
	w, err := webauthn.New(&webauthn.Config{
		RPID: rp, RPDisplayName: "Access Broker", RPOrigins: []string{broker.Origin(u)},
		AttestationPreference: protocol.PreferNoAttestation,
		AuthenticatorSelection: protocol.AuthenticatorSelection{
			UserVerification: protocol.VerificationRequired, ResidentKey: protocol.ResidentKeyRequirementDiscouraged,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("preparing passkeys: %w", err)
	}
	return &Passkeys{rp, w}, nil
}

// RP returns the ID of the relying party.
func (p *Passkeys) RP() string { return p.rp }

// keyAlgorithms lists the algorithms that package audit can verify.
var keyAlgorithms = []protocol.CredentialParameter{
	{Type: protocol.PublicKeyCredentialType, Algorithm: webauthncose.AlgES256},
	{Type: protocol.PublicKeyCredentialType, Algorithm: webauthncose.AlgEdDSA},
	{Type: protocol.PublicKeyCredentialType, Algorithm: webauthncose.AlgRS256},
}

// A keyHolder implements webauthn.User for a person.
type keyHolder struct {
	who      broker.Identity
	passkeys []broker.Passkey
}

// WebAuthnID returns the user handle. It is a hash, because authenticators store it
// and may show it to anyone who has the device (section 14.6.1).
func (h keyHolder) WebAuthnID() []byte {
	sum := sha256.Sum256([]byte("accessbroker/passkey-user/v1\n" + h.who.ID))
	return sum[:]
}

func (h keyHolder) WebAuthnName() string { return h.who.ID }

func (h keyHolder) WebAuthnDisplayName() string {
	if h.who.Person != nil && h.who.Person.Name != "" {
		return h.who.Person.Name
	}
	return h.who.ID
}

func (h keyHolder) WebAuthnCredentials() (list []webauthn.Credential) {
	for _, p := range h.passkeys {
		if p.Removed.IsZero() {
			list = append(list, webauthn.Credential{ID: p.ID})
		}
	}
	return list
}

// An enrolment is the state between Begin and Finish. The broker seals it before it
// leaves the process.
type enrolment struct {
	Session webauthn.SessionData `json:"session"`
	Expires time.Time            `json:"expires"`
}

// Begin starts an enrolment. options are for navigator.credentials.create in the
// browser. state is for Finish; the caller must protect it from changes.
func (p *Passkeys) Begin(who broker.Identity, passkeys []broker.Passkey, now time.Time) (options, state []byte, err error) {
	h := keyHolder{who, passkeys}
	exclude := make([]protocol.CredentialDescriptor, 0, len(passkeys))
	for _, c := range h.WebAuthnCredentials() {
		exclude = append(exclude, c.Descriptor())
	}
	creation, session, err := p.w.BeginRegistration(h, webauthn.WithExclusions(exclude), webauthn.WithCredentialParameters(keyAlgorithms))
	if err != nil {
		return nil, nil, fmt.Errorf("starting the enrolment of a passkey: %w", err)
	}
	if options, err = json.Marshal(creation); err != nil {
		return nil, nil, fmt.Errorf("starting the enrolment of a passkey: %w", err)
	}
	state, err = json.Marshal(enrolment{*session, now.Add(broker.SignWithin)})
	return options, state, err
}

var errEnrolment = errors.New("the passkey is not valid")

// Finish verifies the browser's response to the options of Begin and returns the
// new passkey.
func (p *Passkeys) Finish(who broker.Identity, state, response []byte, now time.Time) (broker.Passkey, error) {
	var e enrolment
	if err := json.Unmarshal(state, &e); err != nil || !now.Before(e.Expires) {
		return broker.Passkey{}, errors.New("the enrolment took too long: start again")
	}
	parsed, err := protocol.ParseCredentialCreationResponseBytes(response)
	if err != nil {
		return broker.Passkey{}, fmt.Errorf("%w: %w", errEnrolment, err)
	}
	made, err := p.w.CreateCredential(keyHolder{who: who}, e.Session, parsed)
	if err != nil {
		return broker.Passkey{}, fmt.Errorf("%w: %w", errEnrolment, err)
	}
	block, _ := pem.Decode([]byte(webauthncose.DisplayPublicKey(made.PublicKey)))
	if block == nil || len(block.Bytes) > audit.MaxPublic || len(made.ID) > audit.MaxCredential {
		return broker.Passkey{}, fmt.Errorf("%w: the type of its key is not supported", errEnrolment)
	}
	return broker.Passkey{ID: made.ID, Public: block.Bytes, RP: p.rp, SignCount: made.Authenticator.SignCount}, nil
}
