package server

import (
	"encoding/json"
	"errors"
	"net/url"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/session"
)

// Passkeys enrols passkeys (WebAuthn). It is safe for concurrent use.
type Passkeys interface {
	// RP returns the relying party's ID: the host of the pages.
	RP() string

	// Begin begins an enrolment. It returns the options for the browser and the
	// state for Finish, which the browser keeps sealed.
	Begin(who broker.Identity, passkeys []broker.Passkey, now time.Time) (options, state []byte, err error)

	// Finish verifies the browser's response and returns the new passkey.
	Finish(who broker.Identity, state, response []byte, now time.Time) (broker.Passkey, error)
}

var errNoPasskeys = refuse(broker.ErrNotFound, "passkeys are not available: the pages need a host with a name")

// A ticket is the sealed state that the browser keeps while a passkey signs.
type ticket struct {
	Nonce   audit.Digest `json:"nonce"`
	Salt    []byte       `json:"salt,omitempty"`
	Expires time.Time    `json:"expires"`
}

// A signRequest is the argument of navigator.credentials.get in a page's script.
type signRequest struct {
	PublicKey signOptions `json:"publicKey"`
	Ticket    string      `json:"ticket"`
}

type signOptions struct {
	Challenge        string           `json:"challenge"`
	RPID             string           `json:"rpId"`
	AllowCredentials []credentialName `json:"allowCredentials"`
	UserVerification string           `json:"userVerification"`
	Timeout          int64            `json:"timeout"` // milliseconds
}

type credentialName struct {
	Type string `json:"type"`
	ID   string `json:"id"`
}

// An assertion is the passkey's response, as a page's script encodes it.
type assertion struct {
	ID                string `json:"id"`
	AuthenticatorData string `json:"authenticator_data"`
	ClientData        string `json:"client_data"`
	Signature         string `json:"signature"`
}

// sealFor seals state that the caller's browser keeps. The purpose and the person
// are authenticated, so that neither can be exchanged.
func (c *call) sealFor(purpose string, v any) (string, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	return encodeBase64URL(c.s.cfg.Sealer.Seal("passkey", purpose+" "+c.who.ID, text)), nil
}

// unseal opens state that sealFor sealed for the same purpose and person.
func (c *call) unseal(purpose, text string) ([]byte, error) {
	sealed, err := decodeBase64URL(text)
	if err != nil {
		return nil, errTicket
	}
	opened, err := c.s.cfg.Sealer.Open("passkey", purpose+" "+c.who.ID, sealed)
	if err != nil {
		return nil, errTicket
	}
	return opened, nil
}

var errTicket = refuse(broker.ErrSignatureRequired, "the signature does not match this decision or took too long: try again")

// toSign answers a script with the options for a passkey's signature.
func (c *call) toSign(purpose string, s *broker.Signing) (reply, error) {
	sealed, err := c.sealFor(purpose, ticket{s.Nonce, s.Salt[:], c.now.Add(broker.SignWithin)})
	if err != nil {
		return reply{}, err
	}
	o := signOptions{
		Challenge: encodeBase64URL(s.Challenge[:]), RPID: c.s.cfg.Passkeys.RP(), UserVerification: "required",
		Timeout: broker.SignWithin.Milliseconds(),
	}
	for _, id := range s.Credentials {
		o.AllowCredentials = append(o.AllowCredentials, credentialName{"public-key", encodeBase64URL(id)})
	}
	return ok(signRequest{o, sealed})
}

// signed reads a passkey's signature and the decision's salt from a form; nil: the
// form is not signed.
func (c *call) signed(purpose string) (*audit.SignatureFacts, [16]byte, error) {
	return c.signedIn("", purpose)
}

// signedIn reads a signature from fields whose names end with suffix.
func (c *call) signedIn(suffix, purpose string) (*audit.SignatureFacts, [16]byte, error) {
	var salt [16]byte
	if c.form.get("assertion"+suffix) == "" {
		return nil, salt, nil
	}
	opened, err := c.unseal(purpose, c.form.get("ticket"+suffix))
	if err != nil {
		return nil, salt, err
	}
	var t ticket
	var a assertion
	if err := json.Unmarshal(opened, &t); err != nil || !c.now.Before(t.Expires) || len(t.Salt) != len(salt) {
		return nil, salt, errTicket
	}
	if err := decodeJSON([]byte(c.form.get("assertion"+suffix)), &a); err != nil {
		return nil, salt, err
	}
	s := &audit.SignatureFacts{Nonce: t.Nonce}
	for _, part := range []struct {
		text string
		into *[]byte
		most int
	}{
		{a.ID, &s.Credential, audit.MaxCredential}, {a.AuthenticatorData, &s.AuthenticatorData, audit.MaxAuthenticatorData},
		{a.ClientData, &s.ClientData, audit.MaxClientData}, {a.Signature, &s.Signature, audit.MaxSignature},
	} {
		if *part.into, err = decodeBase64URL(part.text); err != nil || len(*part.into) == 0 || len(*part.into) > part.most {
			return nil, salt, refuse(broker.ErrSignatureRequired, "the passkey's signature is malformed")
		}
	}
	if client, err := audit.ParseClientData(s.ClientData); err != nil || client.Origin != broker.Origin(c.s.pages) {
		return nil, salt, refuse(broker.ErrSignatureRequired, "the passkey signed for another site")
	}
	return s, [16]byte(t.Salt), nil
}

// signDecision returns the options for signing an approval or a review.
func (s *Server) signDecision(c *call) (reply, error) {
	if s.cfg.Passkeys == nil {
		return reply{}, errNoPasskeys
	}
	r, err := s.requestOf(c)
	if err != nil {
		return reply{}, err
	}
	kind, v, err := c.voteOf(r)
	if err != nil {
		return reply{}, err
	}
	var signing *broker.Signing
	_, err = c.asApprover(func(caller broker.Caller) (_ *broker.Request, err error) {
		signing, err = kind.sign(s.cfg.Broker, c.r.Context(), caller, r.ID, v)
		return nil, err
	})
	if err != nil {
		return reply{}, err
	}
	return c.toSign(kind.name+" "+r.ID.String(), signing)
}

type passkeysPage struct {
	Possible bool // passkeys are available
	Fresh    bool // the viewer has just logged in and may enrol
	Passkeys []passkeyView
	Done     string
	Most     int // bytes of a name, at most
}

type passkeyView struct {
	broker.Passkey
	Credential string // its ID, in base64url
	Waits      bool   // it does not count yet
	Vouch      string // URL of the page on which a colleague vouches for it
}

var passkeysDone = map[string]string{
	"enrolled": "Your passkey is enrolled.", "removed": "The passkey is removed. Its signatures no longer count.", "vouched": "You vouched for the passkey. It counts from now on.",
}

func (s *Server) passkeysPage(c *call) (reply, error) {
	a, err := s.cfg.Sessions.Account(c.r.Context(), c.caller())
	if err != nil {
		return reply{}, err
	}
	p := passkeysPage{
		Possible: s.cfg.Passkeys != nil, Fresh: session.MayEnrol(c.who, c.now),
		Done: passkeysDone[c.r.URL.Query().Get("done")], Most: session.MaxKeyName,
	}
	for _, k := range a.Passkeys {
		credential := encodeBase64URL(k.ID)
		p.Passkeys = append(p.Passkeys, passkeyView{
			Passkey: k, Credential: credential, Waits: c.now.Before(k.Counts),
			Vouch: s.pageURL("/ui/vouch?" + url.Values{"person": {c.who.ID}, "passkey": {credential}}.Encode()),
		})
	}
	return c.page("passkeys", "Security keys and passkeys", "passkeys", p)
}

// enrolOptions returns the options for creating a passkey.
func (s *Server) enrolOptions(c *call) (reply, error) {
	if s.cfg.Passkeys == nil {
		return reply{}, errNoPasskeys
	}
	a, err := s.cfg.Sessions.Account(c.r.Context(), c.caller())
	if err != nil {
		return reply{}, err
	}
	options, state, err := s.cfg.Passkeys.Begin(c.who, a.Passkeys, c.now)
	if err != nil {
		return reply{}, err
	}
	sealed, err := c.sealFor("enrol", json.RawMessage(state))
	if err != nil {
		return reply{}, err
	}
	return ok(map[string]any{"options": json.RawMessage(options), "ticket": sealed})
}

func (s *Server) changePasskeys(c *call) (reply, error) {
	done, err := "removed", error(nil)
	if c.form.get("do") == "enrol" {
		done, err = "enrolled", s.enrol(c)
	} else {
		err = s.removePasskey(c)
	}
	if err != nil {
		return reply{}, err
	}
	return c.redirect(s.to("/ui/passkeys?done=" + done))
}

func (s *Server) enrol(c *call) error {
	if s.cfg.Passkeys == nil {
		return errNoPasskeys
	}
	state, err := c.unseal("enrol", c.form.get("ticket"))
	if err != nil {
		return err
	}
	passkey, err := s.cfg.Passkeys.Finish(c.who, state, []byte(c.form.get("response")), c.now)
	if err != nil {
		s.cfg.Logger.WarnContext(c.r.Context(), "a passkey could not be enrolled", "call_id", c.id, "err", err)
		return refuse(broker.ErrInvalidRequest, "this passkey cannot be used here: try again, or use another one")
	}
	passkey.Name = c.form.get("name")
	return s.cfg.Sessions.Enrol(c.r.Context(), c.caller(), passkey)
}

func (s *Server) removePasskey(c *call) error {
	credential, err := decodeBase64URL(c.form.get("passkey"))
	if err != nil || c.form.get("do") != "remove" {
		return refuse(broker.ErrInvalidRequest, "the form names no action")
	}
	return s.cfg.Sessions.RemovePasskey(c.r.Context(), c.caller(), credential)
}

type vouchPage struct {
	Person     string
	Credential string
	Enrolled   time.Time
	Counts     time.Time
	Waits      bool
}

// vouched reads the person and the passkey that the viewer vouches for.
func vouched(get func(string) string) (person string, credential []byte, err error) {
	person = get("person")
	credential, err = decodeBase64URL(get("passkey"))
	if err != nil || len(credential) == 0 || person == "" || len(person) > 2048 {
		return "", nil, refuse(broker.ErrInvalidRequest, "this link is incomplete: ask for a new one")
	}
	return person, credential, nil
}

func (s *Server) vouchPage(c *call) (reply, error) {
	person, credential, err := vouched(c.r.URL.Query().Get)
	if err != nil {
		return reply{}, err
	}
	p, err := s.cfg.Sessions.PasskeyOf(c.r.Context(), c.caller(), person, credential)
	if err != nil {
		return reply{}, err
	}
	return c.page("vouch", "Vouch for a passkey", "", vouchPage{person, encodeBase64URL(credential), p.Enrolled, p.Counts, c.now.Before(p.Counts)})
}

// signVouch returns the options for signing a vouch.
func (s *Server) signVouch(c *call) (reply, error) {
	person, credential, err := vouched(c.form.get)
	if err != nil {
		return reply{}, err
	}
	if s.cfg.Passkeys == nil {
		return reply{}, errNoPasskeys
	}
	signing, err := s.cfg.Sessions.PrepareVouch(c.r.Context(), c.caller(), person, credential)
	if err != nil {
		return reply{}, err
	}
	return c.toSign("vouch "+person+" "+c.form.get("passkey"), signing)
}

func (s *Server) vouch(c *call) (reply, error) {
	person, credential, err := vouched(c.form.get)
	if err != nil {
		return reply{}, err
	}
	signature, _, err := c.signed("vouch " + person + " " + c.form.get("passkey"))
	if err == nil && signature == nil {
		err = refuse(broker.ErrSignatureRequired, "sign with your passkey in the browser")
	}
	if err != nil {
		return reply{}, err
	}
	if err := s.cfg.Sessions.Vouch(c.r.Context(), c.caller(), person, credential, signature); err != nil {
		return reply{}, err
	}
	return c.redirect(s.to("/ui/passkeys?done=vouched"))
}

// newPasskeys returns when the viewer's latest passkey that does not count yet will
// count; zero if there is none. Every page shows it, because an attacker may have
// enrolled the passkey.
func (s *Server) newPasskeys(c *call) (counts time.Time) {
	a, err := s.cfg.Sessions.Account(c.r.Context(), c.caller())
	if err != nil && !errors.Is(err, broker.ErrSessionRequired) {
		s.cfg.Logger.WarnContext(c.r.Context(), "reading the viewer's passkeys", "call_id", c.id, "err", err)
	}
	if err != nil {
		return counts
	}
	for _, k := range a.Passkeys {
		if k.Removed.IsZero() && c.now.Before(k.Counts) && k.Counts.After(counts) {
			counts = k.Counts
		}
	}
	return counts
}
