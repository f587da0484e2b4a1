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

// Passkeys enrol passkeys. They are safe for concurrent use.
type Passkeys interface {
	// RP is the relying party's id, the host that passkeys are for.
	RP() string

	// Begin begins an enrolment: options are for the browser, and the state,
	// which the browser keeps sealed, for Finish.
	Begin(who broker.Identity, passkeys []broker.Passkey, now time.Time) (options, state []byte, err error)

	// Finish takes what the browser made of the options.
	Finish(who broker.Identity, state, response []byte, now time.Time) (broker.Passkey, error)
}

var errNoPasskeys = refuse(broker.ErrNotFound, "passkeys are for pages whose host has a name, and these have none")

// What the browser keeps, sealed, while a passkey signs.
type ticket struct {
	Nonce   audit.Digest `json:"nonce"`
	Salt    []byte       `json:"salt,omitempty"`
	Expires time.Time    `json:"expires"`
}

// A signRequest is what a page's script gives to navigator.credentials.get.
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

// An assertion is what a page's script makes of what the passkey said.
type assertion struct {
	ID                string `json:"id"`
	AuthenticatorData string `json:"authenticator_data"`
	ClientData        string `json:"client_data"`
	Signature         string `json:"signature"`
}

// sealFor seals what comes back from the caller's browser, for one use.
func (c *call) sealFor(what string, v any) (string, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	return encodeBase64URL(c.s.cfg.Sealer.Seal("passkey", what+" "+c.who.ID, text)), nil
}

// unseal opens what sealFor sealed for the same use, for the same person.
func (c *call) unseal(what, text string) ([]byte, error) {
	sealed, err := decodeBase64URL(text)
	if err != nil {
		return nil, errTicket
	}
	opened, err := c.s.cfg.Sealer.Open("passkey", what+" "+c.who.ID, sealed)
	if err != nil {
		return nil, errTicket
	}
	return opened, nil
}

var errTicket = refuse(broker.ErrSignatureRequired, "what your passkey signed is not what was asked for, or took too long: try again")

// toSign answers a script with what a passkey is to sign.
func (c *call) toSign(what string, s *broker.Signing) (reply, error) {
	sealed, err := c.sealFor(what, ticket{s.Nonce, s.Salt[:], c.now.Add(broker.SignWithin)})
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

// signed reads what a passkey signed, out of a form; nil: it is not signed.
func (c *call) signed(what string) (*audit.SignatureFacts, [16]byte, error) {
	var salt [16]byte
	if c.form.get("assertion") == "" {
		return nil, salt, nil
	}
	opened, err := c.unseal(what, c.form.get("ticket"))
	if err != nil {
		return nil, salt, err
	}
	var t ticket
	var a assertion
	if err := json.Unmarshal(opened, &t); err != nil || !c.now.Before(t.Expires) || len(t.Salt) != len(salt) {
		return nil, salt, errTicket
	}
	if err := decodeJSON([]byte(c.form.get("assertion")), &a); err != nil {
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
			return nil, salt, refuse(broker.ErrSignatureRequired, "what your passkey signed can't be read")
		}
	}
	var client struct {
		Origin string `json:"origin"`
	}
	if err := json.Unmarshal(s.ClientData, &client); err != nil || client.Origin != c.s.origin() {
		return nil, salt, refuse(broker.ErrSignatureRequired, "your passkey was used on another page than this")
	}
	return s, [16]byte(t.Salt), nil
}

// origin is that of the pages (RFC 6454, section 6.2).
func (s *Server) origin() string {
	u, err := url.Parse(s.pageURL(""))
	if err != nil {
		return ""
	}
	return u.Scheme + "://" + u.Host
}

// signDecision answers the page's script with what a passkey signs to approve, or
// to review.
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
	Possible bool // else the pages have no name that passkeys could be for
	Fresh    bool // the person has just logged in
	Passkeys []passkeyView
	Done     string
	Most     int // bytes of a name
}

type passkeyView struct {
	broker.Passkey
	Credential string // its id, in base64url
	Waits      bool
	Vouch      string // the page on which a colleague vouches for it
}

var passkeysDone = map[string]string{
	"enrolled": "Your passkey is enrolled.", "removed": "The passkey is removed. What it signs counts no more.", "vouched": "You vouched for it. It counts from now on.",
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
	return c.page("passkeys", "Your passkeys", "", p)
}

// enrolOptions answers the page's script with what the browser makes a passkey of.
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
	made, err := s.cfg.Passkeys.Finish(c.who, state, []byte(c.form.get("response")), c.now)
	if err != nil {
		s.cfg.Logger.WarnContext(c.r.Context(), "a passkey could not be enrolled", "call_id", c.id, "err", err)
		return refuse(broker.ErrInvalidRequest, "what your browser made is no passkey that can be used here: try again, or use another one")
	}
	made.Name = c.form.get("name")
	return s.cfg.Sessions.Enrol(c.r.Context(), c.caller(), made)
}

func (s *Server) removePasskey(c *call) error {
	credential, err := decodeBase64URL(c.form.get("passkey"))
	if err != nil || c.form.get("do") != "remove" {
		return refuse(broker.ErrInvalidRequest, "the form says nothing to do")
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

// vouched reads for whose passkey somebody vouches.
func vouched(get func(string) string) (person string, credential []byte, err error) {
	person = get("person")
	credential, err = decodeBase64URL(get("passkey"))
	if err != nil || len(credential) == 0 || person == "" || len(person) > 2048 {
		return "", nil, refuse(broker.ErrInvalidRequest, "this link is not whole: ask for it again")
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

// signVouch answers the page's script with what a passkey signs to vouch.
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
		err = refuse(broker.ErrSignatureRequired, "your browser has to sign it with your passkey")
	}
	if err != nil {
		return reply{}, err
	}
	if err := s.cfg.Sessions.Vouch(c.r.Context(), c.caller(), person, credential, signature); err != nil {
		return reply{}, err
	}
	return c.redirect(s.to("/ui/passkeys?done=vouched"))
}

// newPasskeys says from when on the newest passkey counts that waits: its
// person is told on every page, and may know nothing of it.
func (s *Server) newPasskeys(c *call) (counts time.Time) {
	a, err := s.cfg.Sessions.Account(c.r.Context(), c.caller())
	if err != nil && !errors.Is(err, broker.ErrSessionRequired) {
		s.cfg.Logger.WarnContext(c.r.Context(), "looking for new passkeys", "call_id", c.id, "err", err)
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
